"""Counts and reasons, from what pytest itself writes."""

import subprocess
import sys
from pathlib import Path

import pytest
from lorafam.bench.junit import LONGEST_REASON, outcome

TESTS = f"""
import pytest

@pytest.fixture
def broken_after():
    yield
    raise RuntimeError("teardown")

def test_good(): pass
@pytest.mark.parametrize("x", [1, 2])
def test_bad(x): assert x == 2, "x is\\nnot 2" + "!" * {LONGEST_REASON}
def test_skipped(): pytest.skip("no GPU")
def test_bad_twice(broken_after): raise ValueError("first")
def test_not_torn_down(broken_after): pass
"""


def test_outcome(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=out.xml"]
    subprocess.run([*command, "-o", "junit_family=xunit1"], cwd=tmp_path, capture_output=True, check=False)
    found = outcome(tmp_path / "out.xml")
    assert (found["passed"], found["failed"], found["skipped"]) == (2, 3, 1)
    bad = "test_some.py::test_bad[1]"
    assert set(found["failures"]) == {bad, "test_some.py::test_bad_twice", "test_some.py::test_not_torn_down"}
    assert found["failures"][bad] == "AssertionError: x is"
    assert found["failures"]["test_some.py::test_bad_twice"] == "ValueError: first"


@pytest.mark.parametrize("text", [None, "", "<testsuites><testsuite>"])
def test_a_file_that_is_not_whole(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "out.xml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match="not a whole JUnit file"):
        outcome(path)
