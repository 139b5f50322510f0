"""Items in processes of their own: what a wrong, an aborting and a hanging case cost, and what SIGKILL does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lorafam.bench.gpu import worker
from lorafam.bench.gpu.cases import Case
from lorafam.bench.gpu.plan import Item
from lorafam.bench.gpu.runner import ATTEMPTS, GRACE, batches
from lorafam.bench.gpu.store import Record

from tests.bench.gpu.fake_device import FakeDevice

WHOLE = """
import json, sys, time
from pathlib import Path
from light.gpu.plan import Item
from light.gpu.runner import Runner
folder, items = Path(sys.argv[1]), [Item(**item) for item in json.loads(sys.argv[2])]
sys.exit(not Runner(folder, time.time() + float(sys.argv[3]), print, lambda: None).run(items))
"""


def item(name: str, *names: str, alone: bool = True, needs: tuple[str, ...] = (), **options: Any) -> Item:
    return Item(name, "made_up", {"names": list(names), **options}, needs, alone)


def run(folder: Path, items: list[Item], seconds: float = 60) -> tuple[bool, list[str]]:
    """Whether all were finished, and what was said; the tree of `light_tree` must be there."""
    done = subprocess.run(command(folder, items, seconds), stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode == 0, done.stdout.splitlines()


def command(folder: Path, items: list[Item], seconds: float = 600) -> list[str]:
    plan = json.dumps([one._asdict() for one in items])
    return [sys.executable, "-c", WHOLE, str(folder), plan, str(seconds)]


def outcomes(folder: Path, name: str) -> dict[str, str]:
    return {case: found["outcome"] for case, found in Record(folder / f"{name}.json").cases.items()}


def lines(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text().splitlines()


@pytest.mark.usefixtures("light_tree")
def test_one_wrong_one_aborts_one_hangs(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    bad = ["a", "wrong", "b", "aborts", "c", "hangs", "d", "absent"]
    finished, said = run(folder, [item("check/first", *bad, limit=1.0), item("check/next", "e", alone=False)])
    assert finished
    assert outcomes(folder, "check/first") == {
        "a": "passed", "wrong": "failed", "b": "passed", "aborts": "aborted", "c": "passed", "hangs": "hung",
        "d": "passed", "absent": "left out",
    }  # fmt: skip
    assert outcomes(folder, "check/next") == {"e": "passed"}
    found = Record(folder / "check/first.json").cases
    assert found["wrong"]["why"] == "AssertionError: RMS error 1.00e+00"
    assert found["aborts"]["why"] == "its process ended by SIGABRT"
    assert found["hangs"]["why"] == "not done after 1 s"
    assert found["absent"]["why"] == "ncu is not installed"
    assert found["d"]["value"] == 1
    told = [line.split(":")[0].strip() for line in said if line.startswith("    ")]
    assert told == ["FAILED wrong", "ABORTED aborts", "HUNG hangs"]
    assert lines(folder, "runs.txt") == [*bad, "e"]
    again, _ = run(folder, [item("check/first", *bad, limit=1.0)])
    assert again
    assert lines(folder, "runs.txt") == [*bad, "e"]


@pytest.mark.usefixtures("light_tree")
def test_an_illegal_address_costs_one_case_and_its_process(tmp_path: Path) -> None:
    assert run(tmp_path, [item("check/x", "a", "loses", "b")])[0]
    found = Record(tmp_path / "check/x.json").cases
    assert outcomes(tmp_path, "check/x") == {"a": "passed", "loses": "failed", "b": "passed"}
    assert found["loses"]["why"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert found["loses"]["lost"] == found["loses"]["why"]


@pytest.mark.usefixtures("light_tree")
def test_the_time_is_up_and_the_next_call_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    items = [item("check/slow", *"abcdefgh", seconds=0.4), item("check/later", "z")]
    start = time.time()
    finished, _ = run(folder, items, seconds=GRACE + 1.5)
    assert not finished
    assert time.time() - start < GRACE + 2.5
    first = lines(folder, "ends.txt")
    assert 0 < len(first) < 8
    assert not (folder / "check/later.json").exists()
    assert run(folder, items)[0]
    assert lines(folder, "ends.txt") == [*"abcdefgh", "z"]


@pytest.mark.usefixtures("light_tree")
def test_a_case_that_the_end_of_the_time_cuts_is_done_next_time(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    assert not run(folder, [item("check/x", "a", "hangs", limit=50.0)], seconds=GRACE + 1)[0]
    record = Record(folder / "check/x.json")
    assert (record.running, list(record.cases), record.attempts) == ("hangs", ["a"], 1)


@pytest.mark.parametrize(("resumes", "attempts"), [(True, 1), (False, ATTEMPTS)])
def test_a_case_that_resumes_may_be_cut_any_number_of_times(
    resumes: bool, attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorafam.bench.gpu.device.device", FakeDevice)

    def cut() -> dict[str, Any]:
        raise KeyboardInterrupt

    for _ in range(ATTEMPTS):
        with pytest.raises(KeyboardInterrupt):
            worker.done(Case("a", cut, resumes=resumes), Record(tmp_path / "x.json"))
    assert Record(tmp_path / "x.json").attempts == attempts


@pytest.mark.usefixtures("light_tree")
def test_a_case_that_never_ends_is_given_up(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    record = Record(folder / "check/x.json")
    for _ in range(ATTEMPTS):
        record.begin("a", 1.0)
    assert run(folder, [item("check/x", "a", "b")])[0]
    assert outcomes(folder, "check/x") == {"a": "aborted", "b": "passed"}


@pytest.mark.usefixtures("light_tree")
def test_a_process_that_begins_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    assert run(folder, [item("check/x", "no start"), item("check/y", "a")])[0]
    found = Record(folder / "check/x.json").cases["process"]
    assert (found["outcome"], found["why"]) == ("aborted", "it began no case: ended with code 3")
    assert outcomes(folder, "check/y") == {"a": "passed"}


@pytest.mark.usefixtures("light_tree")
def test_what_is_not_installed_is_left_out_by_name(tmp_path: Path) -> None:
    finished, said = run(tmp_path, [item("step/x", "a", needs=("json", "no_such_package"))])
    assert finished
    assert said == ["step/x: left out, not installed: no_such_package"]
    assert outcomes(tmp_path, "step/x") == {"step/x": "left out"}


def test_batches() -> None:
    items = [item(name, alone=alone) for name, alone in (("a/1", True), ("a/2", False), ("a/3", False), ("b/1", False))]
    assert [[one.name for one in batch] for batch in batches(items)] == [["a/1"], ["a/2", "a/3"], ["b/1"]]


def test_killed_at_random_moments_the_same_is_finished_each_once(light_tree: Path, tmp_path: Path) -> None:
    """SIGKILL, 20 times: the runner alone is hit, its workers go with it."""
    folder = tmp_path / "results"
    names = [f"{number}" for number in range(60)]
    items = [
        item("check/a", *names[:20], seconds=0.05),
        item("check/b", *names[20:40], seconds=0.05, alone=False),
        item("check/c", "wrong", "aborts", *names[40:], seconds=0.05, alone=False),
    ]
    whole = command(folder, items)
    draw = random.Random(5)
    for _ in range(20):
        process = subprocess.Popen(whole, cwd=light_tree, stdout=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.1, 0.7))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    cut = len(Record(folder / "check/a.json").cases) + len(Record(folder / "check/b.json").cases)
    assert cut > 0
    assert subprocess.run(whole, cwd=light_tree, check=False).returncode == 0
    expected = dict.fromkeys(names, "passed") | {"wrong": "failed", "aborts": "aborted"}
    found = {name: Record(folder / f"{name}.json") for name in ("check/a", "check/b", "check/c")}
    assert all(record.finished and record.running is None for record in found.values())
    assert {case: one["outcome"] for record in found.values() for case, one in record.cases.items()} == expected
    # one that was killed between its end and its being written down ends twice, and is written down once
    ended = lines(folder, "ends.txt")
    assert set(ended) == set(names)
    assert len(ended) <= len(names) + 20
