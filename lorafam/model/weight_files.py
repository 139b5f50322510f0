"""A whole model's weights on disk: model.safetensors, or shards and their index, as transformers writes them.

Only headers are read here, so that everything about a merge is known and checked before a weight is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..methods.stored_weight import DENSE

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG = "config.json"
# safetensors' names of what can be merged into or converted, and their bytes
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_OTHER_WEIGHTS = ("*.gguf", "pytorch_model*.bin", "*.pt", "*.pth", "*.msgpack", "*.h5")


class Entry(NamedTuple):
    """A tensor in a file: `dtype` as safetensors names it; `source` is its name there where that is another."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    source: str | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def weight_entries(folder: Path) -> dict[str, Entry]:
    """Name → entry of a model folder's tensors, in the files' order.

    Raises FileNotFoundError for a folder without a config or weights, ValueError for a quantised model, for weights in
    another format and for damaged files.
    """
    if folder.suffix == ".gguf":
        raise ValueError(f"model: {folder} is a GGUF file, expected a folder with safetensors files; {_INSTEAD}")
    if not folder.is_dir():
        raise FileNotFoundError(f"model: no such folder: {folder}")
    _check_config(folder)
    entries: dict[str, Entry] = {}
    for file in weight_files(folder):
        entries.update(header(file))
    return entries


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files of the index."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if not (folder / INDEX).is_file():
        found = next((path for pattern in _OTHER_WEIGHTS for path in sorted(folder.glob(pattern))), None)
        if found is not None:
            raise ValueError(f"model: {folder} has {found.name}, expected {WHOLE} or {INDEX}; {_INSTEAD}")
        raise FileNotFoundError(f"model: {folder} has neither {WHOLE} nor {INDEX}")
    weight_map = read_json(folder / INDEX, "model").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"model: {folder / INDEX} is damaged, it has no weight_map")
    files = [folder / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"model: {folder} lacks {file.name}, which {INDEX} names")
    return files


_INSTEAD = "merge into the model that it was made from"


def _check_config(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"model: {folder} has no {CONFIG}, it is no model folder")
    quantised = read_json(folder / CONFIG, "model").get("quantization_config")
    if quantised:
        kind = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
        raise ValueError(f"model: {folder} is quantised ({kind}), expected dense weights; {_INSTEAD}")


def header(file: Path) -> dict[str, Entry]:
    """Name → entry, in the header's order. Raises ValueError for a damaged file."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = file.stat().st_size
            if not 2 <= length <= size - 8:
                raise ValueError("its header is cut off")
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        ends = {name: tuple(map(int, entry["data_offsets"])) for name, entry in entries.items()}
        if max((end for _, end in ends.values()), default=0) != size - 8 - length:
            raise ValueError("its size isn't what its header says")
        return {
            name: Entry(name, file, entries[name]["dtype"], tuple(entries[name]["shape"]), end - start)
            for name, (start, end) in ends.items()
        }
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"model: {file} is damaged, not a safetensors file ({error})") from None


def read_json(file: Path, setting: str) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError, beginning with the `setting`, for anything else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{setting}: {file} is damaged, not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{setting}: {file} is damaged, expected an object")
    return values


def size_in_bytes(text: str | int) -> int:
    """ "5GB" → 5,000,000,000; also B, KB, MB, TB, KiB, MiB, GiB. Raises ValueError for anything else, 0 included."""
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise ValueError(f"max_shard_size: expected a size like 5GB or 500MB, got {text!r}")
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = _UNITS.get((match[2] or "B").upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise ValueError(f"max_shard_size: expected a size like 5GB or 500MB, got {text!r}")
    return size


def stored_bytes(entry: Entry, dtype: str) -> int:
    """Bytes of a tensor in the output: floats in `dtype`, "same" leaving them as they are."""
    if dtype == "same" or entry.dtype not in FLOATS:
        return entry.nbytes
    return entry.numel * DENSE[dtype].itemsize


def plan(sizes: Mapping[str, int], max_shard_size: int) -> dict[str, list[str]]:
    """File name → tensors, filled one after another, as transformers does; a larger tensor has a file of its own."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = max_shard_size
        shards[-1].append(name)
        room -= size
    if len(shards) <= 1:
        return {WHOLE: shards[0] if shards else []}
    return {f"model-{n:05}-of-{len(shards):05}.safetensors": names for n, names in enumerate(shards, 1)}


def index_text(shards: Mapping[str, Iterable[str]], sizes: Mapping[str, int], parameters: int) -> str:
    """model.safetensors.index.json."""
    weight_map = {name: file for file, names in shards.items() for name in names}
    metadata = {"total_parameters": parameters, "total_size": sum(sizes.values())}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
