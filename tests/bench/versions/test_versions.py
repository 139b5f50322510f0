"""`make versions` with fakes for pip and pytest: what is installed, run, written, and never called a pass."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from lorafam.bench.versions import __main__ as versions
from lorafam.bench.versions import environment as environments
from lorafam.bench.versions import page as pages
from lorafam.bench.versions import parts
from lorafam.bench.versions.environment import Environment
from lorafam.bench.versions.matrix import COLUMNS, FAST, ROWS, Row
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
BESIDE = Row("t", {"triton": "3.6.0"}, ("compiled", "launched"), "another row's", beside=True)
OWN = Row("o", {"torch": "2.11.0", "peft": "0.21.2"}, ("tests",), "another row's")
GREEN = {"passed": 5, "failed": 0, "skipped": 0, "failures": {}}
RED = {"passed": 4, "failed": 1, "skipped": 2, "failures": {"tests/a.py::b": "wrong"}}


def requirements() -> dict[str, Requirement]:
    """What pyproject.toml states, of every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def numbers(version: str) -> list[int]:
    return [*map(int, version.split("."))]


@pytest.mark.parametrize("name", ["torch", "triton", "transformers", "peft", "numba", "bitsandbytes"])
def test_both_ends_of_a_stated_range_are_rows(name: str) -> None:
    stated = requirements()[name].specifier
    tried = sorted({row.packages[name] for row in ROWS if name in row.packages}, key=numbers)
    assert all(version in stated for version in tried)
    # the floor itself, and nothing beyond the newest minor version
    (floor,) = (one.version for one in stated if one.operator == ">=")
    (bound,) = (one.version for one in stated if one.operator == "<")
    assert numbers(tried[0])[: floor.count(".") + 1] == numbers(floor)
    major, minor, *_ = numbers(tried[-1])
    assert numbers(bound) == [major, minor + 1]


def test_every_column_is_run_by_a_row_and_the_fast_rows_exist() -> None:
    assert {column for row in ROWS for column in row.runs} == set(COLUMNS)
    assert {column for part in parts.PARTS for column in part.columns} == set(COLUMNS)
    assert set(FAST) <= {row.name for row in ROWS}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """pip's and venv's commands."""
    made: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        made.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(environments.subprocess, "run", run)
    return made


def test_a_triton_lies_in_front_of_the_packages_that_are_there(tmp_path: Path, installed: list[list[str]]) -> None:
    found = Environment(BESIDE, tmp_path / "t")
    found.make(tmp_path)
    (pip,) = installed
    assert pip[-5:] == ["--upgrade", "--no-deps", "--target", str(tmp_path / "t"), "triton==3.6.0"]
    assert found.python == Path(sys.executable)
    assert found.variables["PYTHONPATH"].startswith(str(tmp_path / "t"))
    found.make(tmp_path)
    assert len(installed) == 1


def test_an_environment_of_its_own_has_torch_first_and_stays_at_the_rows_versions(
    tmp_path: Path, installed: list[list[str]]
) -> None:
    Environment(OWN, tmp_path / "o").make(tmp_path)
    venv, torch, rest = installed
    assert venv[1:3] == ["-m", "venv"]
    assert torch[-1] == "torch==2.11.0"
    assert rest[-2:] == ["--editable", f"{tmp_path}[dev]"]
    assert torch[5] == rest[5] == "--constraint"
    assert Path(rest[6]).read_text().split() == ["torch==2.11.0", "peft==0.21.2"]


def test_other_versions_than_the_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, json.dumps({"triton": "3.9.0", "Python": "3.11.7"}), "")

    monkeypatch.setattr(environments.subprocess, "run", run)
    with pytest.raises(RuntimeError, match=r"^triton: expected 3\.6\.0, got 3\.9\.0$"):
        Environment(BESIDE, tmp_path).versions()


def fake_pytest(folder: Path, xml: str, then: str) -> Environment:
    """An environment whose Python writes `xml` where pytest would, and goes on with `then`."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nfile="${{3#--junitxml=}}"\ncat > "$file" <<END\n{xml}\nEND\n{then}\n')
    script.chmod(0o755)
    found = Environment(BESIDE, folder)
    found.python = script
    return found


CASE = '<testcase classname="tests.compiled.test_matrix" name="{}">{}</testcase>'
BOTH = "<testsuites><testsuite>{}</testsuite></testsuites>".format(
    CASE.format("test_no_spills", "") + CASE.format("test_a_driver_launches_them", '<failure message="3 kernels"/>')
)
COMPILED = parts.PARTS[0]


def test_launches_have_a_column_of_their_own(tmp_path: Path) -> None:
    found = parts.run(COMPILED, fake_pytest(tmp_path, BOTH, "exit 1"), tmp_path, 1)
    assert found["compiled"] == {"passed": 1, "failed": 0, "skipped": 0, "failures": {}}
    assert (found["launched"]["failed"], [*found["launched"]["failures"].values()]) == (1, ["3 kernels"])


@pytest.mark.parametrize(
    ("xml", "then", "error"),
    [
        (BOTH, "exit 2", "pytest ended with exit code 2"),
        (BOTH, "exit 5", "pytest ended with exit code 5"),
        ("<testsuites", "exit 0", "not a whole JUnit file"),
        ("<testsuites/>", "exit 0", "no test ran"),
        (BOTH, "kill -9 $$", "pytest ended with exit code -9"),
        (BOTH, "sleep 60", "not finished in 0.02 minutes"),
    ],
)
def test_what_does_not_end_well_is_no_pass(tmp_path: Path, xml: str, then: str, error: str) -> None:
    found = parts.run(COMPILED, fake_pytest(tmp_path, xml, then), tmp_path, 0.02)
    assert error in found["compiled"]["error"]
    assert error in found["launched"]["error"]


def test_two_parts_of_a_column_count_together_and_an_error_stays() -> None:
    assert parts.merged(GREEN, RED) == {"passed": 9, "failed": 1, "skipped": 2, "failures": RED["failures"]}
    for one, other in (({"error": "e"}, GREEN), (GREEN, {"error": "e"})):
        assert parts.merged(one, other) == {"error": "e"}


def test_the_page_tells_what_did_not_run_and_why() -> None:
    versions = {"torch": "2.13.0+cpu", "triton": "3.6.0", "Python": "3.11.7"}
    columns = {"compiled": GREEN, "launched": RED}
    results = {"t": {"versions": versions, "columns": columns, "at": "2026-11-26 0a1b2c3"}}
    lines = pages.page((BESIDE, OWN), results).splitlines()
    (beside,) = (line for line in lines if "| 3.6.0 |" in line)
    (own,) = (line for line in lines if line.startswith("| 2.11.0"))
    assert beside.startswith("| 2.13.0+cpu | 3.6.0 |")
    assert "| 5 passed | **1 failed**, 4 passed, 2 skipped (1) | not run (2) | not run (2) |" in beside
    assert beside.endswith("| 2026-11-26 0a1b2c3 |")
    assert "passed" not in own
    notes = [line for line in lines if line[:1].isdigit()]
    assert notes == ["1. `tests/a.py::b`: wrong", "2. another row's", "3. not tried yet"]
    assert pages.failed((BESIDE, OWN), results) == ["t: launched", "o: tests"]


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root where every row's parts pass, those of the row "o" alone don't end."""
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(versions, "ROWS", (BESIDE, OWN))
    monkeypatch.setattr(versions, "FAST", ("t",))
    monkeypatch.setattr(Environment, "make", lambda self, root: None)
    monkeypatch.setattr(Environment, "versions", lambda self: dict(self.row.packages))

    def run(part: parts.Part, environment: Environment, root: Path, minutes: float) -> dict[str, Any]:
        return {column: {"error": "killed"} if environment.row is OWN else GREEN for column in part.columns}

    monkeypatch.setattr(versions, "run", run)
    return tmp_path


def test_the_rows_of_every_submission_write_no_page(tried: Path) -> None:
    assert versions.main(["fast"], tried) == 0
    assert not (tried / "docs" / "versions.md").exists()
    assert [*(tried / "bench" / "versions" / "results").iterdir()] == []


def test_all_rows_write_the_page_and_an_error_is_a_failure(tried: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert versions.main([], tried) == 1
    assert "not passed: o: tests" in capsys.readouterr().out
    text = (tried / "docs" / "versions.md").read_text()
    assert "| 5 passed | 5 passed |" in text
    assert "killed" in text


def test_a_row_keeps_its_results_until_it_is_run_again(tried: Path) -> None:
    versions.main(["t"], tried)
    versions.main(["o"], tried)
    assert "| 5 passed | 5 passed |" in (tried / "docs" / "versions.md").read_text()


def test_a_row_without_an_environment_says_so(tried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(self: Environment, root: Path) -> None:
        raise RuntimeError("pip: no such version")

    monkeypatch.setattr(Environment, "make", make)
    assert versions.main([], tried) == 1
    text = (tried / "docs" / "versions.md").read_text()
    assert "pip: no such version" in text
    assert "passed" not in text.split("|---", 1)[1]


def before() -> dict[str, Any]:
    failures = {"tests/a.py::b": "wrong", "tests/ops/c.py::d[1]": "worse"}
    column = {"passed": 4, "failed": 2, "skipped": 1, "failures": failures}
    return {"versions": dict(OWN.packages), "columns": {"tests": column}, "at": "2026-11-26 0a1b2c3"}


def test_what_failed_is_tried_again_alone(tried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tried / "bench" / "versions" / "results" / "o.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(before()))
    given: list[list[str]] = []

    def run_again(tests: Any, *_: Any) -> tuple[set[str], set[str]]:
        given.append([*tests])
        return {"tests/a.py::b"}, {"tests/ops/c.py::d[1]"}

    monkeypatch.setattr(versions, "run_again", run_again)
    monkeypatch.setattr(versions, "_at", lambda _: "2026-11-27 4d5e6f7")
    assert versions.main(["o", "--failed"], tried) == 1
    assert given == [["tests/a.py::b", "tests/ops/c.py::d[1]"]]
    page = (tried / "docs" / "versions.md").read_text()
    assert "**1 failed**, 5 passed (1 when tried again), 1 skipped" in page
    assert "2026-11-26 0a1b2c3; again 2026-11-27 4d5e6f7" in page
    # the next time the rest
    monkeypatch.setattr(versions, "run_again", lambda tests, *_: (set(tests), set()))
    assert versions.main(["o", "--failed"], tried) == 0
    assert "6 passed (2 when tried again), 1 skipped" in (tried / "docs" / "versions.md").read_text()


@pytest.mark.parametrize("why", ["versions", "end"])
def test_trying_again_changes_nothing_where_it_tells_nothing(
    why: str, tried: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_again(*_: Any) -> Any:
        raise RuntimeError("not finished in 1 minutes")

    monkeypatch.setattr(versions, "run_again", run_again)
    kept = before()
    if why == "versions":
        kept["versions"]["peft"] = "0.21.1"
    assert versions.tried_again(kept, Environment(OWN, tried), tried, 1) == kept
    assert ("other versions" if why == "versions" else "not finished") in capsys.readouterr().out


def test_a_test_passes_again_only_where_it_fails_in_no_part(tmp_path: Path) -> None:
    xml = "<testsuites><testsuite>{}</testsuite></testsuites>".format(
        "".join(
            f'<testcase file="tests/{name}.py" name="t">{body}</testcase>'
            for name, body in {"a": "", "ops/b": '<failure message="wrong"/>', "c": "<skipped/>"}.items()
        )
    )
    names = ["tests/a.py::t", "tests/ops/b.py::t", "tests/c.py::t"]
    good, bad = parts.run_again(names, fake_pytest(tmp_path, xml, "exit 1"), tmp_path, 1)
    assert (good, bad) == ({"tests/a.py::t"}, {"tests/ops/b.py::t"})
    with pytest.raises(RuntimeError, match="exit code 4"):
        parts.run_again(names, fake_pytest(tmp_path, xml, "exit 4"), tmp_path, 1)
