"""What counts as a difference between the two runs."""

from lorafam.bench.peft_suite.compare import Outcome, compare, doubtful

PASSED = Outcome("passed", 2, 3)
ACCELERATED = {
    "a": PASSED,
    "b": Outcome("failed", 1, 0, "0.1 off"),
    "c": Outcome("failed"),
    "d": Outcome("skipped", reason="no GPU"),
    "e": Outcome("skipped"),
    "f": Outcome("not imported", reason="no such module"),
}


def test_what_did_not_pass_is_run_plain() -> None:
    assert doubtful(ACCELERATED) == ["b", "c", "d", "e"]


def test_only_what_passes_plain_is_broken() -> None:
    plain = {"b": PASSED, "c": Outcome("failed"), "d": PASSED, "e": Outcome("skipped")}
    found = compare(plain, ACCELERATED, {})
    assert found.broken == {"b": "failed: 0.1 off", "d": "skipped: no GPU"}
    assert found.absent == {"f": "no such module"}
    assert (found.run, found.passed, found.layers, found.forwards) == (6, 1, 3, 3)


def test_known_ones_are_told_apart() -> None:
    found = compare({"b": PASSED, "c": Outcome("failed")}, ACCELERATED, {"b": "rounding", "c": "rounding"})
    assert (found.broken, found.known) == ({}, {"b": "rounding"})
