"""A session over several points: kept after each, gone on with, bounded in time."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from lorafam.kernels.launch_config import LaunchConfig
from lorafam.kernels.launch_table import launch_config, prefer, preferred
from lorafam.kernels.paths import path_of, preferred_paths

from lorafam.backends.triton_gpu.user_table import read
from lorafam.tune import session
from lorafam.tune.check import GpuLostError
from lorafam.tune.session import Summary, tune

from .fake_gpu import ARCHITECTURE, FATAL, NORM, PATH, PROJECT, RIGHT, FakeGpu

prepared = importlib.import_module("lorafam.backends.triton_gpu.prepared")
POINTS = [PROJECT, PROJECT._replace(tokens=16), NORM]


class Told:
    """A reporter that keeps what it's told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.measured: list[Any] = []
        self.begun: tuple[int, int] | None = None
        self.ended = False

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, done: int, total: int) -> None:
        self.begun = (done, total)

    def starts(self, point: Any) -> None:
        pass

    def ends(self, point: Any, found: dict[str, Any]) -> None:
        self.measured.append(point)

    def end(self) -> None:
        self.ended = True


def one_warp_wins(kernel: str, config: LaunchConfig) -> float:
    return float(config.num_warps)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "tuned.json"


def test_no_launch_made_meanwhile_is_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(prepared._known, 0, None)
    tune(POINTS[:1], FakeGpu().gpu(), path, Told(), seconds=100)
    assert prepared._known == {}


def test_a_whole_session_then_nothing_left_to_do(path: Path) -> None:
    told = Told()
    assert tune(POINTS, FakeGpu(seconds=one_warp_wins).gpu(), path, told, seconds=100) == Summary(3, 3, 3)
    assert (told.measured, told.notes, told.begun, told.ended) == (POINTS, [], (0, 3), True)
    assert list(path.parent.iterdir()) == [path]
    kept = read(path, ARCHITECTURE)
    assert kept is not None
    assert set(kept["rows"]) == {"lora_project", "row_norm"}
    assert set(kept["versions"]) == {"lorafam", "triton"}
    # in effect at once, before the shipped rows
    assert preferred(ARCHITECTURE) == kept["rows"]
    assert launch_config("lora_project", ARCHITECTURE, "bfloat16", 16, K=128, rank=16).num_warps == 1
    assert launch_config("lora_project", ARCHITECTURE, "bfloat16", 17, K=128, rank=16).num_warps > 1

    told, fake = Told(), FakeGpu()
    assert tune(POINTS, fake.gpu(), path, told, seconds=100) == Summary(3, 3, 3)
    assert (told.measured, fake.launched, told.begun) == ([], [], (3, 3))
    assert told.notes == [f"goes on: 3 of 3 points are in {path} (--again starts over)"]
    assert tune(POINTS[:1], FakeGpu().gpu(), path, Told(), seconds=100, again=True) == Summary(1, 1, 0)
    assert json.loads(path.read_text())["rows"] == {}


def test_paths_are_kept_and_used(path: Path) -> None:
    def staging_wins(kernel: str, config: LaunchConfig) -> float:
        return 1.0 + (kernel == "fused")

    assert tune([PATH], FakeGpu(seconds=staging_wins).gpu(), path, Told(), seconds=100) == Summary(1, 1, 1)
    kept = read(path, ARCHITECTURE)
    assert kept is not None
    assert kept["paths"] == preferred_paths(ARCHITECTURE) != {}
    assert path_of("lora_linear", ARCHITECTURE, 64, 64, 128).path == "staged"
    assert path_of("lora_linear", ARCHITECTURE, 64, 64, 192).path == "fused"


def test_an_op_that_does_not_come_to_its_kernel_is_told_and_the_others_go_on(path: Path) -> None:
    # the fake product asks about paths alone
    never = PATH._replace(op="dense_linear")
    told = Told()
    assert tune([never, PROJECT], FakeGpu(seconds=one_warp_wins).gpu(), path, told, seconds=100) == Summary(2, 2, 1)
    assert told.measured == [never, PROJECT]
    first, _ = json.loads(path.read_text())["points"]
    assert first["failure"] == "dense_linear: lora_linear doesn't launch it"
    assert read(path, ARCHITECTURE) is not None


def test_ctrl_c_loses_no_point(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, searched = session.search, []

    def interrupted(*arguments: Any, **more: Any) -> Any:
        searched.append(arguments)
        if len(searched) == 2:
            raise KeyboardInterrupt
        return search(*arguments, **more)

    monkeypatch.setattr(session, "search", interrupted)
    told = Told()
    with pytest.raises(KeyboardInterrupt):
        tune(POINTS, FakeGpu(seconds=one_warp_wins).gpu(), path, told, seconds=100)
    assert told.ended
    assert len(preferred(ARCHITECTURE)["lora_project"]) == 1
    told = Told()
    assert tune(POINTS, FakeGpu(seconds=one_warp_wins).gpu(), path, told, seconds=100) == Summary(3, 3, 3)
    assert told.measured == POINTS[1:]
    assert told.begun == (1, 3)


def test_the_time_is_shared_and_kept_to(path: Path) -> None:
    fake, told = FakeGpu(seconds=one_warp_wins, cost=1.0), Told()
    found = tune(POINTS, fake.gpu(), path, told, seconds=60)
    assert told.measured == POINTS
    assert fake.now < 120
    assert found.finished < 3
    # what was found in that time counts, and the next session goes on from it
    unfinished = [one for one in json.loads(path.read_text())["points"] if not one["finished"]]
    assert unfinished
    assert found.won >= 1
    fake, told = FakeGpu(seconds=one_warp_wins), Told()
    assert tune(POINTS, fake.gpu(), path, told, seconds=60) == Summary(3, 3, 3)
    assert len(told.measured) == len(unfinished)
    assert tune(POINTS, FakeGpu().gpu(), path.with_name("other"), Told(), seconds=0) == Summary(3, 0, 0)


def test_a_damaged_file_is_told_and_started_over(path: Path) -> None:
    path.parent.mkdir()
    no_points = '{"architecture": "sm_90", "points": [3], "rows": {}, "paths": {}}'
    for text, why in (("{", "is damaged"), (no_points, "starts over")):
        path.write_text(text)
        told = Told()
        assert tune(POINTS[:1], FakeGpu().gpu(), path, told, seconds=9).finished == 1
        assert len(told.notes) == 1
        assert why in told.notes[0]


def test_a_configuration_that_takes_the_gpu_down_is_left_out_next_time(path: Path) -> None:
    def kills(kernel: str, config: LaunchConfig) -> str:
        return FATAL if config.num_warps == 1 else RIGHT

    prefer(ARCHITECTURE, {})
    lost = 0
    while True:
        try:
            tune(POINTS[:1], FakeGpu(kills, one_warp_wins).gpu(), path, Told(), seconds=100)
        except GpuLostError:
            lost += 1
            assert lost < 20
            (kept,) = json.loads(path.read_text())["points"]
            assert len(kept["avoid"]) == lost
        else:
            break
    assert lost
    (kept,) = json.loads(path.read_text())["points"]
    assert kept["finished"]
    assert kept["best"]["num_warps"] == 2
