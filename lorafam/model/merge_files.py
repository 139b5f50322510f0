"""A model folder and an adapter folder to a folder of the merged model, a shard at a time, resumable.

model-0000i-of-0000N.safetensors   written under a hidden name, synced and renamed
merge-state.json                   while unfinished: settings, digest of the inputs, finished shards, their reports
config.json, tokenizer, ...        copied from the model at the end
merge-report.json                  what merging cost
model.safetensors.index.json       last of all: without it, an unfinished folder of shards isn't taken for a model

What is written depends on the inputs and settings alone: a run killed at any point and resumed ends in the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..config import check_flag, check_path
from ..files import LEFTOVER, FolderInUseError, working_in, write_json, write_whole
from ..methods.merge_report import MergeReport
from ..methods.stored_weight import DENSE
from .file_adapter import FileAdapter
from .merge_state import STATE, digest_of, opened, settings_of
from .merged_tensors import MergedTensors, Progress
from .model_merge_report import ModelMergeReport
from .stored_model import StoredModel
from .weight_files import CONFIG, INDEX, WHOLE, Entry, index_text, plan, stored_bytes, weight_entries

REPORT = "merge-report.json"
# weights in any format, what this run writes itself, and the page that describes the model as it was
_NOT_COPIED = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")
_NOT_COPIED_NAMES = {CONFIG, STATE, REPORT, "README.md"}


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
    for name, path in (("model", model), ("adapter", adapter), ("output", output)):
        if path is not None or name == "output":
            check_path(name, path)
    check_flag("resume", resume)
    folder = Path(output)
    state = opened(folder, resume)
    settings = settings_of(state, folder, model, adapter, dtype, max_shard_size, threshold)
    source = Path(settings["model"])
    stored = StoredModel(source, weight_entries(source))
    merging = FileAdapter(Path(settings["adapter"]), stored)
    merged = MergedTensors(stored, merging, settings)
    entries = merged.entries
    inputs = digest_of(source, Path(settings["adapter"]))
    if state is not None and state["inputs"] != inputs:
        raise ValueError(f"model, adapter: they have changed since the merge in {folder} began")
    sizes = {name: stored_bytes(entry, settings["dtype"]) for name, entry in entries.items()}
    shards = plan(sizes, settings["max_shard_size"])
    state = state or {"inputs": inputs, "settings": settings, "shards": {}, "layers": {}}
    done = [name for name in shards if _is_there(folder / name, state["shards"].get(name))]
    written = sum(sizes[tensor] for name in done for tensor in shards[name])
    _check_room(folder, sum(sizes.values()) - written)

    with _alone_in(folder):
        # ours, and .tmpXXXXXX of safetensors, which writes under a name of its own and renames
        for leftover in (*folder.glob(f".*{LEFTOVER}"), *folder.glob(".tmp??????")):
            leftover.unlink()
        write_json(folder / STATE, state)
        progress = progress or _Silent()
        progress.begin(written, sum(sizes.values()))
        try:
            for number, (name, tensors) in enumerate(shards.items(), 1):
                if name in done:
                    continue
                reports = merged.write(folder / name, [entries[tensor] for tensor in tensors], progress)
                state["layers"] |= {path: report.plain() for path, report in reports.items()}
                state["shards"][name] = (folder / name).stat().st_size
                write_json(folder / STATE, state)
                progress.shard(name, number, len(shards), sum(sizes[tensor] for tensor in tensors))
        finally:
            progress.end()
        report = ModelMergeReport({path: MergeReport.from_plain(state["layers"][path]) for path in merging.places})
        _finish(folder, source, settings, merging, report, shards, sizes, entries)
    return MergedFiles(folder, tuple(shards), sum(sizes.values()), report)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    try:
        with working_in(folder):
            yield
    except FolderInUseError:
        raise ValueError(f"output: another merge is at work in {folder}") from None


def _is_there(file: Path, size: int | None) -> bool:
    return size is not None and file.is_file() and file.stat().st_size == size


def _check_room(folder: Path, needed: int) -> None:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ValueError(f"output: {folder} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")


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
            write_whole(folder / file.name, lambda path, file=file: shutil.copyfile(file, path))  # type: ignore[misc]
    write_whole(
        folder / CONFIG,
        lambda path: path.write_text(_config_text(source / CONFIG, settings["dtype"], bool(merging.untied)), "utf-8"),
    )
    told = {name: settings[name] for name in ("model", "adapter", "dtype", "threshold")}
    write_json(folder / REPORT, {**told, "method": merging.config.method, **report.plain()})
    if WHOLE not in shards:
        parameters = sum(entry.numel for entry in entries.values())
        write_whole(folder / INDEX, lambda path: path.write_text(index_text(shards, sizes, parameters), "utf-8"))
    (folder / STATE).unlink()


def _config_text(file: Path, dtype: str, untied: bool) -> str:
    """config.json, its dtype that of the output; tables that aren't tied any more."""
    text = file.read_text(encoding="utf-8")
    if dtype == "same" and not untied:
        return text
    values = json.loads(text)
    for part in (values, *(value for value in values.values() if isinstance(value, dict))):
        if untied and (part is values or "tie_word_embeddings" in part):
            part["tie_word_embeddings"] = False
        for key in ("dtype", "torch_dtype") if dtype != "same" else ():
            if key in part or (part is values and key == "dtype" and "torch_dtype" not in part):
                part[key] = str(DENSE[dtype]).removeprefix("torch.")
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


class _Silent:
    def begin(self, done: int, total: int) -> None: ...

    def tensor(self, name: str, nbytes: int) -> None: ...

    def shard(self, name: str, number: int, of: int, nbytes: int) -> None: ...

    def end(self) -> None: ...
