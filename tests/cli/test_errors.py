import pytest
from typer.testing import CliRunner

from lorafam.cli.errors import fail
from lorafam.cli.main import app


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["finetune", "--rank", "abc"], "lorafam finetune: rank: expected an integer, got 'abc'"),
        (["finetune", "--rnk", "4"], "lorafam finetune: No such option: --rnk"),
        (["finetune", "--rank"], "lorafam: Option '--rank' requires an argument."),
        (["finetune", "extra"], "lorafam finetune: Got unexpected extra argument"),
        (["finetun"], "lorafam: No such command 'finetun'."),
        (["--wrong"], "lorafam: No such option: --wrong"),
    ],
)
def test_parsing_error_is_one_line(arguments: list[str], line: str) -> None:
    result = CliRunner().invoke(app, arguments, prog_name="lorafam")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1


def test_fail_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        fail("a\nmessage  in\n parts", command="lorafam x", code=3)
    assert error.value.code == 3
    assert capsys.readouterr().err == "lorafam x: a message in parts\n"
