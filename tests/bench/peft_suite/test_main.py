"""What is printed, and the exit code."""

from pathlib import Path
from typing import Any

import pytest
from lorafam.bench.peft_suite import __main__ as suite
from lorafam.bench.peft_suite.compare import Outcome

GOOD, BAD, LOST = Outcome("passed", 1, 2), Outcome("failed", reason="0.1 off"), Outcome("not imported")


@pytest.mark.parametrize(
    ("accelerated", "code"),
    [
        ({"a": GOOD}, 0),
        ({"a": GOOD, "b": BAD}, 1),
        ({"a": GOOD, "c": BAD, "d": Outcome("skipped")}, 0),
        ({"a": GOOD, "b": Outcome("skipped")}, 1),
        ({}, 1),
        ({"a": Outcome("passed", 1, 0)}, 1),
        ({"a": GOOD, "b": LOST}, 1),
    ],
)
def test_exit_code(
    accelerated: dict[str, Outcome], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "unpacked", lambda build: build)
    monkeypatch.setattr(suite, "make_models", lambda home: None)
    plain = {"b": Outcome("passed"), "c": Outcome("failed"), "d": Outcome("skipped")}

    def outcomes(folder: Path, files: list[str], accelerate: bool, only: Any = None) -> dict[str, Outcome]:
        return accelerated if accelerate else {name: plain[name] for name in only}

    monkeypatch.setattr(suite, "outcomes", outcomes)
    assert suite.main() == code
    printed = capsys.readouterr().out
    assert ("FAILED accelerated alone: b" in printed) == (accelerated.get("b", LOST) != LOST)


def test_a_run_that_does_not_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").touch()
    monkeypatch.setattr(suite, "BUILD", tmp_path)
    with pytest.raises(SystemExit, match="the plain run ended with code"):
        suite.outcomes(tmp_path, ["tests/test_absent.py"], accelerate=False)
