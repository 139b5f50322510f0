from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorafam.finetune import InputError
from lorafam.finetune import checkpoints as c
from lorafam.model.trainable import save_trainable

FILES = [c.TRAINABLE, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


def write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(3)}, folder / c.TRAINABLE)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", c.ALLOCATOR):
        torch.save({"state": torch.zeros(100)}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1}))
    return folder


def test_newest_is_by_number(tmp_path: Path) -> None:
    assert c.find_newest(tmp_path).newest is None
    for step in (9, 100, 20):
        write(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-last").mkdir()
    (tmp_path / "checkpoint-200").write_text("a file")
    assert c.find_newest(tmp_path).newest == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
def test_damaged_one_is_passed_over(name: str, how: str, tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-1")
    path = write(tmp_path / "checkpoint-2") / name
    assert c.find_newest(tmp_path).newest == tmp_path / "checkpoint-2"
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if how == "cut" else 0])
    assert name in str(c.damage(tmp_path / "checkpoint-2"))
    assert c.find_newest(tmp_path).newest == tmp_path / "checkpoint-1"


def test_allocator_state_is_asked_for(tmp_path: Path) -> None:
    (write(tmp_path / "checkpoint-1") / c.ALLOCATOR).unlink()
    assert c.find_newest(tmp_path).newest is not None
    assert c.find_newest(tmp_path, allocator=True).newest is None


def test_nothing_is_seen_before_it_is_published(tmp_path: Path) -> None:

    def interrupted() -> None:
        with c.staging(tmp_path) as folder:
            write(folder / "checkpoint-1")
            assert c.find_newest(tmp_path).newest is None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []
    with c.staging(tmp_path) as folder:
        write(folder / "checkpoint-1")
        c.publish(folder / "checkpoint-1", tmp_path / "checkpoint-1")
    assert os.listdir(tmp_path) == ["checkpoint-1"]
    assert c.find_newest(tmp_path).newest == tmp_path / "checkpoint-1"


def test_publish_replaces(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old").touch()
    with c.staging(tmp_path) as folder:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "new").touch()
        c.publish(folder / "adapter", tmp_path / "adapter")
    assert os.listdir(tmp_path) == ["adapter"]
    assert os.listdir(tmp_path / "adapter") == ["new"]


def test_old_ones_and_leftovers_go(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        write(tmp_path / f"checkpoint-{step}")
    write(tmp_path / ".saving-1" / "checkpoint-4")
    c.remove_old(tmp_path)
    c.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-10", "checkpoint-3"]


@pytest.mark.parametrize(("kept", "left"), [(2, [1, 2]), (10, [1, 2, 3, 10]), (None, [])])
def test_newer_ones_go(kept: int | None, left: list[int], tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        write(tmp_path / f"checkpoint-{step}")
    c.remove_newer(tmp_path, None if kept is None else tmp_path / f"checkpoint-{kept}")
    assert [path.name for path in c.checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert not list(tmp_path.glob(".*"))


def test_trainable_parameters_round_trip(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    save_trainable(model, tmp_path)
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    c.load_trainable(model, tmp_path)
    now = list(model.parameters())
    assert torch.equal(now[0], kept[0] + 1)
    assert all(torch.equal(a, b) for a, b in zip(now[2:], kept[2:], strict=True))


@pytest.mark.parametrize(
    "other", [torch.nn.Linear(3, 3), torch.nn.Linear(2, 3, bias=False), torch.nn.Bilinear(3, 3, 2)]
)
def test_parameters_of_another_model_are_refused(other: torch.nn.Module, tmp_path: Path) -> None:
    save_trainable(torch.nn.Linear(2, 3), tmp_path)
    before = [parameter.detach().clone() for parameter in other.parameters()]
    with pytest.raises(InputError, match=r"^resume: .*differ in (weight|bias)"):
        c.load_trainable(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
