"""A model folder and an adapter folder to a folder of the merged model, a shard at a time, resumable.

model-0000i-of-0000N.safetensors   written under a hidden name, synced and renamed
merge-state.json                   while unfinished: settings, digest of the inputs, finished shards, their reports
config.json, tokenizer, ...        copied from the model at the end
merge-report.json                  what merging cost
model.safetensors.index.json       last of all: without it, an unfinished folder of shards isn't taken for a model

What is written depends on the inputs and settings alone: a run killed at any point and resumed ends in the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..config import check_choice
from ..methods.merge_report import THRESHOLD, MergeReport, check_threshold
from ..methods.stored_weight import DENSE
from .adapter_file import tensor_file
from .file_adapter import FileAdapter
from .model_merge_report import ModelMergeReport
from .peft_settings import CONFIG_FILE
from .weight_files import (
    CONFIG,
    FLOATS,
    INDEX,
    WHOLE,
    Entry,
    index_text,
    plan,
    read_json,
    size_in_bytes,
    stored_bytes,
    weight_entries,
    weight_files,
)

Tensor = torch.Tensor

STATE, REPORT = "merge-state.json", "merge-report.json"
DTYPES = ("same", *DENSE)
_STATE = {"inputs": str, "settings": dict, "shards": dict, "layers": dict}
# weights in any format, what this run writes itself, and the page that describes the model as it was
_NOT_COPIED = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")
_NOT_COPIED_NAMES = {CONFIG, STATE, REPORT, "README.md"}


class Progress(Protocol):
    """Is told how far a merge is, in bytes written."""

    def begin(self, done: int, total: int) -> None: ...

    def tensor(self, name: str, nbytes: int) -> None: ...

    def shard(self, name: str, number: int, of: int, nbytes: int) -> None: ...

    def end(self) -> None: ...


class MergedFiles(NamedTuple):
    """What `merge_files` wrote: the folder, its weight files and their bytes; what merging cost, by layer."""

    output: Path
    files: tuple[str, ...]
    nbytes: int
    report: ModelMergeReport


def merge_files(
    model: str | os.PathLike[str] | None,
    adapter: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    max_shard_size: str | int | None = None,
    threshold: float | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> MergedFiles:
    """Merges the adapter in a folder (PEFT's format: LoRA, DoRA, AdaLoRA) into the model in another (safetensors) and
    writes a whole model that transformers loads. Holds about one shard of the output and one layer in memory.

    `dtype`: "same" as each tensor has (the default), or "bf16", "fp16", "fp32" for all floats; a file has at most
    `max_shard_size`, 5GB by default, or one tensor. Each merged weight is formed in fp64, then rounded; `threshold` as
    in a layer's `merge`. `resume` goes on with a run that was interrupted; settings that are None are that run's then.

    Raises FileNotFoundError and ValueError, beginning with what is wrong (model, adapter, output, ...), before anything
    is written; ValueError later where a merged weight isn't finite.
    """
    folder = Path(output)
    state = _opened(folder, resume)
    settings = _settings(state, folder, model, adapter, dtype, max_shard_size, threshold)
    source = Path(settings["model"])
    entries = weight_entries(source)
    tied = bool(read_json(source / CONFIG, "model").get("tie_word_embeddings"))
    merging = FileAdapter(Path(settings["adapter"]), entries, tied)
    inputs = _digest(source, Path(settings["adapter"]))
    if state is not None and state["inputs"] != inputs:
        raise ValueError(f"model, adapter: they have changed since the merge in {folder} began")
    sizes = {name: stored_bytes(entry, settings["dtype"]) for name, entry in entries.items()}
    shards = plan(sizes, settings["max_shard_size"])
    state = state or {"inputs": inputs, "settings": settings, "shards": {}, "layers": {}}
    done = [name for name in shards if _is_there(folder / name, state["shards"].get(name))]
    written = sum(sizes[tensor] for name in done for tensor in shards[name])
    _check_room(folder, sum(sizes.values()) - written)

    folder.mkdir(parents=True, exist_ok=True)
    # ours, and .tmpXXXXXX of safetensors, which writes under a name of its own and renames
    for leftover in (*folder.glob(".*.tmp"), *folder.glob(".tmp??????")):
        leftover.unlink()
    _write_json(folder / STATE, state)
    progress = progress or _Silent()
    progress.begin(written, sum(sizes.values()))
    try:
        for number, (name, tensors) in enumerate(shards.items(), 1):
            if name in done:
                continue
            reports = _write_shard(folder / name, [entries[tensor] for tensor in tensors], merging, settings, progress)
            state["layers"] |= {path: report.plain() for path, report in reports.items()}
            state["shards"][name] = (folder / name).stat().st_size
            _write_json(folder / STATE, state)
            progress.shard(name, number, len(shards), sum(sizes[tensor] for tensor in tensors))
    finally:
        progress.end()
    report = ModelMergeReport({path: MergeReport.from_plain(state["layers"][path]) for path in merging.places})
    _finish(folder, source, settings, merging, report, shards, sizes, entries)
    return MergedFiles(folder, tuple(shards), sum(sizes.values()), report)


def _opened(folder: Path, resume: bool) -> dict[str, Any] | None:
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
    # a run that was killed at its very first file leaves that file's temporary alone
    if folder.is_dir() and any(path.name != f".{STATE}.tmp" for path in folder.iterdir()):
        raise ValueError(f"output: {folder} isn't empty; choose another folder")
    return None


def _settings(
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


def _digest(model: Path, adapter: Path) -> str:
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


def _is_there(file: Path, size: int | None) -> bool:
    return size is not None and file.is_file() and file.stat().st_size == size


def _check_room(folder: Path, needed: int) -> None:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ValueError(f"output: {folder} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")


def _write_shard(
    file: Path, entries: list[Entry], merging: FileAdapter, settings: Mapping[str, Any], progress: Progress
) -> dict[str, MergeReport]:
    """Writes the tensors of one shard; path → report of the layers whose weight is among them."""
    weights = {place.weight: path for path, place in merging.places.items()}
    biases = {place.bias: path for path, place in merging.places.items() if place.bias}
    dtype = DENSE.get(settings["dtype"])
    tensors: dict[str, Tensor] = {}
    reports = {}
    for entry in entries:
        tensor = _read(entry)
        if entry.name in merging.replaced:
            tensor = merging.replaced[entry.name].to(tensor.dtype)
        if entry.name in weights:
            path = weights[entry.name]
            tensor, reports[path] = _merged(path, tensor, merging, settings)
        elif entry.name in biases:
            tensor = _merged_bias(biases[entry.name], tensor, merging, dtype or tensor.dtype)
        elif dtype is not None and entry.dtype in FLOATS:
            tensor = _narrowed(entry.name, tensor, dtype)
        tensors[entry.name] = tensor.contiguous()
        progress.tensor(entry.name, tensors[entry.name].nbytes)
    _replace(file, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    return reports


def _merged(path: str, tensor: Tensor, merging: FileAdapter, settings: Mapping[str, Any]) -> tuple[Tensor, MergeReport]:
    turned = merging.places[path].transposed
    tensor = merging.bases.get(path, tensor).to(tensor.dtype)
    layer = merging.layer(path, tensor.T if turned else tensor)
    try:
        report = layer.merge(into=settings["dtype"], threshold=settings["threshold"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    weight: Tensor = layer.base_layer.weight.detach()  # type: ignore[operator]
    return (weight.T if turned else weight), report


def _merged_bias(path: str, tensor: Tensor, merging: FileAdapter, dtype: torch.dtype) -> Tensor:
    layer = merging.layer(path, torch.empty(0, 0))
    with torch.no_grad():
        exact = layer.merged_bias(tensor.double())
    assert exact is not None
    return _narrowed(f"{path}'s bias", exact, dtype)


def _narrowed(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = tensor.to(dtype)
    if dtype == torch.float16 and not narrow.isfinite().all():
        raise ValueError(f"dtype: {name} has values that fp16 can't hold, choose bf16 or fp32")
    return narrow


def _read(entry: Entry) -> Tensor:
    """Mapped, and private to this process: what is written into it never reaches the file."""
    with safe_open(entry.file, framework="pt") as file:
        return file.get_tensor(entry.name)


def _finish(
    folder: Path,
    source: Path,
    settings: Mapping[str, Any],
    merging: FileAdapter,
    report: ModelMergeReport,
    shards: Mapping[str, list[str]],
    sizes: Mapping[str, int],
    entries: Mapping[str, Entry],
) -> None:
    for file in sorted(source.iterdir()):
        hidden = file.name.startswith(".") or file.name in _NOT_COPIED_NAMES
        if file.is_file() and not hidden and not file.name.endswith(_NOT_COPIED):
            _replace(folder / file.name, lambda path, file=file: shutil.copyfile(file, path))  # type: ignore[misc]
    _replace(folder / CONFIG, lambda path: path.write_text(_config_text(source / CONFIG, settings["dtype"]), "utf-8"))
    told = {name: settings[name] for name in ("model", "adapter", "dtype", "threshold")}
    _write_json(folder / REPORT, {**told, "method": merging.config.method, **report.plain()})
    if WHOLE not in shards:
        parameters = sum(entry.numel for entry in entries.values())
        _replace(folder / INDEX, lambda path: path.write_text(index_text(shards, sizes, parameters), "utf-8"))
    (folder / STATE).unlink()


def _config_text(file: Path, dtype: str) -> str:
    """config.json, its dtype that of the output."""
    text = file.read_text(encoding="utf-8")
    if dtype == "same":
        return text
    name = str(DENSE[dtype]).removeprefix("torch.")
    values = json.loads(text)
    for part in (values, *(value for value in values.values() if isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in part or (part is values and key == "dtype" and "torch_dtype" not in part):
                part[key] = name
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    _replace(file, lambda path: path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8"))


def _replace(file: Path, write: Callable[[Path], Any]) -> None:
    """`file` is there whole or not at all, after a crash of the machine too"""
    temporary = file.with_name(f".{file.name}.tmp")
    write(temporary)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, file)


class _Silent:
    def begin(self, done: int, total: int) -> None: ...

    def tensor(self, name: str, nbytes: int) -> None: ...

    def shard(self, name: str, number: int, of: int, nbytes: int) -> None: ...

    def end(self) -> None: ...
