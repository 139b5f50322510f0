"""What is printed, and the exit code."""

from pathlib import Path

import pytest
from lorafam.bench.peft_suite import __main__ as suite
from lorafam.bench.peft_suite.compare import Outcome

GOOD, BAD, LOST = Outcome("passed", 1, 2), Outcome("failed", reason="0.1 off"), Outcome("not imported")


@pytest.mark.parametrize(
    ("accelerated", "code"),
    [({"a": GOOD}, 0), ({"a": BAD}, 1), ({}, 1), ({"a": Outcome("passed", 1, 0)}, 1), ({"a": GOOD, "b": LOST}, 1)],
)
def test_exit_code(
    accelerated: dict[str, Outcome], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "unpacked", lambda build: build)
    monkeypatch.setattr(suite, "make_models", lambda home: None)
    monkeypatch.setattr(
        suite, "outcomes", lambda folder, files, accelerate: accelerated if accelerate else {"a": Outcome("passed")}
    )
    assert suite.main() == code
    printed = capsys.readouterr().out
    assert ("FAILED accelerated alone: a" in printed) == (accelerated.get("a", BAD) == BAD)


def test_a_run_that_does_not_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").touch()
    monkeypatch.setattr(suite, "BUILD", tmp_path)
    with pytest.raises(SystemExit, match="the plain run ended with code"):
        suite.outcomes(tmp_path, ["tests/test_absent.py"], accelerate=False)
