import pytest

from lorafam.finetune.errors import one_line


@pytest.mark.parametrize(
    ("message", "line"),
    [("one", "one"), ("\n  two words \n more\n", "two words"), ("", "ValueError"), ("x" * 400, "x" * 297 + "...")],
)
def test_one_line(message: str, line: str) -> None:
    assert one_line(ValueError(message)) == line
