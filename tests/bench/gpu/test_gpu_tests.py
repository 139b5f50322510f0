"""Which tests run on a GPU, what each leaves, and what becomes of a file that can't be imported here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lorafam.bench.gpu.store import Record
from lorafam.bench.gpu.worker import DONE, LATER, LOST

TESTS = """
import os
import pytest

@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_by_parameter(backend):
    assert backend == "triton"

@pytest.mark.parametrize("kernels", ["sm_90", "cuda"])
@pytest.mark.parametrize("by", ["triton"])
@pytest.mark.parametrize("number", [1, 2])
def test_wrong(kernels, number, by):
    assert number == 1, "two is wrong"

def test_of_the_cpu():
    raise AssertionError

@pytest.mark.gpu
def test_marked():
    import unsloth

@pytest.mark.gpu
def test_skipped():
    pytest.skip("why not")

@pytest.mark.gpu
def test_asked_for():
    pytest.importorskip("unsloth")
"""
PYPROJECT = '[tool.pytest.ini_options]\nmarkers = ["gpu: x", "compiled: x"]\n'


def worker(folder: Path, text: str, seconds: float = 60, conftest: str = "") -> tuple[int, Record]:
    """The exit code of a worker over one file of tests, and the record it leaves."""
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "test_some.py").write_text(text)
    (folder / "conftest.py").write_text(conftest)
    record = folder / "results" / "tests" / "some.json"
    options = json.dumps({"file": "test_some.py"})
    given = [options, str(folder / "results"), str(record), str(time.time() + seconds), str(os.getpid())]
    environment = {
        "LORAFAM_GPU_DEVICE": "tests.bench.gpu.fake_device:FakeDevice",
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "lorafam.bench.gpu.worker", "gpu_tests", *given]
    code = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode
    return code, Record(record)


def test_only_what_needs_the_gpu_and_each_once(tmp_path: Path) -> None:
    code, record = worker(tmp_path, TESTS)
    assert (code, record.finished) == (DONE, True)
    assert {name: case["outcome"] for name, case in record.cases.items()} == {
        "test_by_parameter[triton]": "passed",
        "test_wrong[1-triton-cuda]": "passed",
        "test_wrong[2-triton-cuda]": "failed",
        "test_marked": "left out",
        "test_skipped": "left out",
        "test_asked_for": "left out",
    }
    assert record.cases["test_wrong[2-triton-cuda]"]["why"].startswith("AssertionError: two is wrong")
    assert record.cases["test_marked"]["why"] == "not installed: unsloth"
    assert record.cases["test_asked_for"]["why"] == "not installed: unsloth"
    assert record.cases["test_skipped"]["why"] == "Skipped: why not"


def test_it_goes_on_after_what_is_done(tmp_path: Path) -> None:
    record = Record(tmp_path / "results" / "tests" / "some.json")
    record.end("test_wrong[2-triton-cuda]", "hung")
    record.begin("test_marked", 1.0)
    code, record = worker(tmp_path, TESTS, seconds=0)
    assert (code, record.finished, len(record.cases)) == (LATER, False, 1)
    code, record = worker(tmp_path, TESTS)
    assert (code, len(record.cases)) == (DONE, 6)
    assert record.cases["test_wrong[2-triton-cuda]"] == {"outcome": "hung"}


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("file", "import unsloth\n"),
        ("file", "import pytest; pytest.importorskip('unsloth')\n"),
        ("conftest", "import unsloth\n"),
    ],
)
def test_a_package_that_is_missing_is_named(where: str, line: str, tmp_path: Path) -> None:
    text = {where: line}
    code, record = worker(tmp_path, text.get("file", "") + TESTS, conftest=text.get("conftest", ""))
    assert code == DONE
    assert record.cases == {"collection": {"outcome": "left out", "why": "not installed: unsloth"}}


def test_another_failure_to_import_is_one(tmp_path: Path) -> None:
    code, record = worker(tmp_path, "import no_such_module_of_ours\n")
    assert code == DONE
    assert record.cases["collection"]["outcome"] == "failed"
    assert "no_such_module_of_ours" in record.cases["collection"]["why"]


LOSES = """
import pytest
from made_up import Device

@pytest.mark.gpu
@pytest.mark.parametrize("number", [1, 2, 3])
def test_some(number):
    Device.lost = number == 2
    assert number != 2
"""
DEVICE = """
class Device:
    lost, longest = False, None

    def synchronize(self):
        if Device.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
"""


def test_a_lost_gpu_costs_one_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_up.py").write_text(DEVICE)
    monkeypatch.setenv("LORAFAM_GPU_DEVICE", "made_up:Device")
    code, record = worker(tmp_path, LOSES)
    assert (code, list(record.cases)) == (LOST, ["test_some[1]", "test_some[2]"])
    assert record.cases["test_some[2]"]["lost"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    code, record = worker(tmp_path, LOSES)
    assert (code, record.finished) == (DONE, True)
    assert {name: case["outcome"] for name, case in record.cases.items()} == {
        "test_some[1]": "passed",
        "test_some[2]": "failed",
        "test_some[3]": "passed",
    }
