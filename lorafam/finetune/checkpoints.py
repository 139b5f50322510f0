"""Checkpoints that are whole or not there.

transformers writes a checkpoint's files one after the other under its final name and, when asked to resume, takes the
highest number, whole or not. So here a checkpoint is written into a hidden folder beside, flushed to disk and
renamed: `checkpoint-N` appears in one step. Reading it, files are looked at again, so that one damaged later is
passed over.

    checkpoint-N/ adapter_model.safetensors, adapter_config.json   the adapter in PEFT's format
                  trainable.safetensors     every trainable parameter as it is; PEFT's format leaves pruned ranks out
                  optimizer.pt, scheduler.pt, rng_state.pth, trainer_state.json   transformers'
                  rank_allocator.pt         AdaLoRA's importance so far
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import nn

from ..model import trainable
from ..model.trainable import TRAINABLE
from ..optim.rank_allocator import ALLOCATOR
from .errors import InputError

KEPT = 2
_FILES = (TRAINABLE, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(output: Path) -> list[Path]:
    """The folders called checkpoint-N, oldest first."""
    numbered = [(_NAME.fullmatch(path.name), path) for path in output.glob("checkpoint-*") if path.is_dir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


class Found(NamedTuple):
    """The newest checkpoint all of whose files can be read, or None; and what is wrong with newer ones."""

    newest: Path | None
    damaged: tuple[str, ...]


def find_newest(output: Path, *, allocator: bool = False) -> Found:
    """Looks from the newest on. `allocator`: AdaLoRA's state is one of the files."""
    damaged: list[str] = []
    for folder in reversed(checkpoints(output)):
        wrong = damage(folder, allocator=allocator)
        if wrong is None:
            return Found(folder, tuple(damaged))
        damaged.append(f"{folder.name}: {wrong}")
    return Found(None, tuple(damaged))


def damage(folder: Path, *, allocator: bool = False) -> str | None:
    """What is wrong with a checkpoint, or None."""
    for name in (*_FILES, ALLOCATOR) if allocator else _FILES:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif not zipfile.is_zipfile(path):
                return f"{name} is damaged"
        except (UnicodeDecodeError, json.JSONDecodeError, SafetensorError):
            return f"{name} is damaged"
    return None


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A hidden folder in `output` to write into; it is gone afterwards, whatever happened."""
    folder = _hidden(output)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(output: Path) -> None:
    """Removes what this process was writing: an interrupt can come while `staging` cleans up."""
    shutil.rmtree(_hidden(output), ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Flushes a written folder to disk and gives it its name, in place of what had that name."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or os.name == "posix":
            _flush(path)
    if target.exists():
        os.rename(target, folder.parent / "replaced")
    os.rename(folder, target)
    if os.name == "posix":
        _flush(target.parent)


def remove_old(output: Path) -> None:
    """Removes all but the newest checkpoints. Each is renamed first, so that none is ever seen half removed."""
    for path in checkpoints(output)[:-KEPT]:
        _remove(path)


def remove_newer(output: Path, kept: Path | None) -> None:
    """Removes the checkpoints after `kept`, all where it is None: a run goes on from there and writes its own."""
    every = checkpoints(output)
    for path in every[every.index(kept) + 1 if kept is not None else 0 :]:
        _remove(path)


def remove_leftovers(output: Path) -> None:
    """Removes what processes that were killed had begun to write."""
    for path in output.glob(".saving-*"):
        shutil.rmtree(path)


def load_trainable(model: nn.Module, folder: Path) -> None:
    """`model.trainable`'s; raises InputError, before anything is changed, when the model has other parameters."""
    try:
        trainable.load_trainable(model, folder)
    except ValueError as error:
        raise InputError(f"resume: {error}") from error


def _hidden(output: Path) -> Path:
    return output / f".saving-{os.getpid()}"


def _remove(path: Path) -> None:
    with staging(path.parent) as folder:
        os.rename(path, folder / path.name)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
