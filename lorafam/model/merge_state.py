"""What a merge of files remembers while it is unfinished: its settings, its inputs, the shards that are done."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import check_choice
from ..files import LEFTOVER, LOCK
from ..methods.merge_report import THRESHOLD, check_threshold
from ..methods.stored_weight import DENSE
from .adapter_file import tensor_file
from .peft_settings import CONFIG_FILE
from .weight_files import CONFIG, read_json, size_in_bytes, weight_files

STATE = "merge-state.json"
DTYPES = ("same", *DENSE)
_STATE = {"inputs": str, "settings": dict, "shards": dict, "layers": dict}


def opened(folder: Path, resume: bool) -> dict[str, Any] | None:
    """The state of the run to go on with. Raises ValueError for a folder that can't be written into so."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: expected a folder, {folder} is a file")
    unfinished = (folder / STATE).is_file()
    if resume:
        if not unfinished:
            raise ValueError(f"output: {folder} has no unfinished merge to resume (no {STATE})")
        state = read_json(folder / STATE, "output")
        if not all(isinstance(state.get(key), kind) for key, kind in _STATE.items()):
            raise ValueError(f"output: {folder / STATE} is damaged, start anew in another folder")
        return state
    if unfinished:
        raise ValueError(f"output: {folder} has an unfinished merge; resume it (--resume) or choose another folder")
    # a run that was killed at its very first file leaves that file's temporary, and its lock, alone
    if folder.is_dir() and any(
        path.name != LOCK and not (path.name.startswith(f".{STATE}.") and path.name.endswith(LEFTOVER))
        for path in folder.iterdir()
    ):
        raise ValueError(f"output: {folder} isn't empty; choose another folder")
    return None


def settings_of(
    state: Mapping[str, Any] | None,
    folder: Path,
    model: str | os.PathLike[str] | None,
    adapter: str | os.PathLike[str] | None,
    dtype: str | None,
    max_shard_size: str | int | None,
    threshold: float | None,
) -> dict[str, Any]:
    given = {
        "model": None if model is None else os.fspath(model),
        "adapter": None if adapter is None else os.fspath(adapter),
        "dtype": dtype,
        "max_shard_size": None if max_shard_size is None else size_in_bytes(max_shard_size),
        "threshold": threshold,
    }
    if state is not None:
        saved = state["settings"]
        for name, value in given.items():
            if value is not None and value != saved[name]:
                raise ValueError(f"{name}: the merge in {folder} has {saved[name]!r}, it can't go on with {value!r}")
        return dict(saved)
    settings = {"dtype": "same", "max_shard_size": size_in_bytes("5GB"), "threshold": THRESHOLD}
    settings |= {name: value for name, value in given.items() if value is not None}
    for name in ("model", "adapter"):
        if name not in settings:
            raise ValueError(f"{name}: missing, expected a folder")
    check_choice("dtype", settings["dtype"], DTYPES)
    check_threshold(settings["threshold"])
    return settings


def digest_of(model: Path, adapter: Path) -> str:
    """Of the adapter's and the configuration's bytes, and of what the weight files look like from outside: hashing a
    large model would take longer than merging it.
    """
    digest = hashlib.sha256()
    for file in (adapter / CONFIG_FILE, tensor_file(adapter), model / CONFIG):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    for file in weight_files(model):
        found = file.stat()
        digest.update(f"{file.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
