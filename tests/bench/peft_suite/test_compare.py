"""What counts as a difference between the two runs."""

from lorafam.bench.peft_suite.compare import Outcome, compare

PASSED = Outcome("passed", 2, 3)


def test_only_what_passed_plain_can_break() -> None:
    plain = {"a": PASSED, "b": PASSED, "c": Outcome("failed"), "d": Outcome("skipped"), "e": PASSED, "f": PASSED}
    accelerated = {
        "a": PASSED,
        "b": Outcome("failed", 1, 0, "0.1 off"),
        "c": Outcome("failed"),
        "d": PASSED,
        "f": PASSED,
    }
    found = compare(plain, accelerated, {})
    assert found.broken == {"b": "failed: 0.1 off", "e": "didn't run"}
    assert found.mended == {"d": "skipped: "}
    assert (found.run, found.passed_plain, found.passed_accelerated) == (6, 4, 3)
    assert (found.layers, found.forwards) == (7, 9)


def test_a_skipped_test_has_not_passed() -> None:
    assert compare({"a": PASSED}, {"a": Outcome("skipped", reason="no GPU")}, {}).broken == {"a": "skipped: no GPU"}


def test_known_ones_are_told_apart() -> None:
    found = compare(
        {"a": PASSED, "b": PASSED}, {"a": Outcome("failed"), "b": PASSED}, {"a": "rounding", "b": "rounding"}
    )
    assert (found.broken, found.known) == ({}, {"a": "rounding"})
