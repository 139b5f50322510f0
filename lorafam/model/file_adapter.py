"""An adapter folder beside a model's files: which tensor each of its layers changes, and the layer around one of them.

The module `path` of an adapter's tensor "base_model.model.<path>.lora_A.weight" has its weight in the model's files as
"<path>.weight", or without the path's first part where the files belong to the bare model (h.0 for transformer.h.0).
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..config import AdapterConfig, starts_from_weight
from ..methods import AdapterLayer
from .adapter_file import read_adapter, tensor_file
from .fit import check_fit, meta_layers, put_tensors
from .peft_format import PREFIX, TENSOR_FILE, tensor_names
from .peft_settings import CONFIG_FILE
from .weight_files import FLOATS, Entry

Tensor = torch.Tensor


_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")


class Place(NamedTuple):
    """Where a layer's weight is: `weight` [N, K] by name, [K, N] where `transposed`; `bias` None unless it changes."""

    weight: str
    bias: str | None
    transposed: bool


class FileAdapter:
    """An adapter as PEFT saves it, its layers by path, and the `places` of what they change in a model's files. `bases`
    are weights of the base that the adapter's file has, as PEFT puts an adapted output head's into it: they are the
    ones to merge into. `replaced` are others that it has whole (modules_to_save, tables).

    Raises FileNotFoundError, ValueError: what `load_adapter` refuses; a layer that has no weight in the files, one of
    another shape, not of floats, or tied to the embeddings; adapters of embeddings; values that aren't finite.
    """

    def __init__(self, folder: Path, entries: Mapping[str, Entry], tied: bool) -> None:
        for name in ("", CONFIG_FILE, tensor_file(folder).name):
            if not (folder / name).exists():
                raise FileNotFoundError(f"adapter: no such {'file' if name else 'folder'}: {folder / name}")
        self._file = file = read_adapter(folder)
        # PEFT says so for GPT-2's Conv1D, whose weight is [K, N]
        fan_in_fan_out = file.fan_in_fan_out
        self.config: AdapterConfig = file.config
        if starts_from_weight(self.config.init):
            raise ValueError(
                f"{CONFIG_FILE}: init_lora_weights = {self.config.init!r}: for a base that lost a part to them, "
                "expected a file converted by path_initial_model_for_weight_conversion, or lorafam.load_adapter"
            )
        ending = ".base_layer"
        self.bases = {}
        whole: dict[str, Tensor] = {}
        for given, found in file.whole.items():
            if given.endswith(ending) and set(found) == {"weight"}:
                self.bases[given.removesuffix(ending)] = found["weight"]
            else:
                whole |= {f"{given}.{name}": tensor for name, tensor in found.items()}
        if file.names_saved and not whole:
            raise ValueError(
                f"{CONFIG_FILE}: modules_to_save = {list(file.names_saved)}, {TENSOR_FILE} has none of them"
            )
        # what takes the place of a tensor of the model's files
        self.replaced = _replaced(whole, entries)
        for name in self.replaced if tied and file.names_saved else ():
            if name in _HEADS or "embed" in name or "wte" in name:
                raise ValueError(
                    f"adapter: {name!r} was trained whole, in the model it is tied (tie_word_embeddings in config.json)"
                )
        self._tensors = _by_path(file.tensors, self.config.method)
        names = _weight_names(list(self._tensors), entries)
        if tied:
            _check_not_tied(names, entries)
        self.places: dict[str, Place] = {}
        sideways: dict[str, bool | None] = {}
        for path, tensor in self.bases.items():
            shape = entries[names[path]].shape if path in names else None
            if tensor.shape != shape:
                expected = "none" if shape is None else list(shape)
                raise ValueError(f"{TENSOR_FILE}: {path!r} has a weight {list(tensor.shape)}, expected {expected}")
        for path, tensors in self._tensors.items():
            entry, (out_features, in_features) = entries[names[path]], self._sizes(path)
            if entry.dtype not in FLOATS:
                raise ValueError(f"model: {entry.name!r} has dtype {entry.dtype}, expected one of {', '.join(FLOATS)}")
            sideways[path] = _sideways(path, entry, out_features, in_features, tensors)
        square = _of_square(sideways, fan_in_fan_out)
        for path, tensors in self._tensors.items():
            bias = None
            if f"{PREFIX}{path}.lora_B.bias" in tensors:
                bias = f"{names[path].removesuffix('weight')}bias"
                if bias not in entries:
                    raise ValueError(f"{TENSOR_FILE}: {path!r} has a bias (lora_bias), the model's layer has none")
            turned = sideways[path]
            self.places[path] = Place(names[path], bias, square if turned is None else turned)
        with torch.device("meta"):
            bases = {path: self._base(path) for path in self._tensors}
        # every shape and name is checked before anything is computed
        self._layers = meta_layers(bases, self.config)
        check_fit(self._layers, file)

    def layer(self, path: str, weight: Tensor) -> AdapterLayer:
        """The adapter's layer around an nn.Linear of `weight` [N, K], without a bias."""
        # it stays as it is, for the next time
        layer = copy.deepcopy(self._layers[path]).to_empty(device="cpu")
        put_tensors(layer.active, self._layers[path], path, self._file)
        layer.base_layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer.eval()

    def _base(self, path: str) -> nn.Module:
        out_features, in_features = self._sizes(path)
        return nn.Linear(in_features, out_features, bias=False)

    def _sizes(self, path: str) -> tuple[int, int]:
        """(N, K)."""
        sizes = {}
        for attribute, side in (("B", 0), ("A", 1)):
            name = f"{PREFIX}{path}.{tensor_names(self.config.method)[attribute]}"
            tensor = self._tensors[path].get(name)
            if tensor is None:
                raise ValueError(f"{TENSOR_FILE}: lacks {name!r}")
            if tensor.ndim != 2:
                raise ValueError(f"{TENSOR_FILE}: {name!r} has shape {list(tensor.shape)}, expected a matrix")
            sizes[attribute] = tensor.shape[side]
        return sizes["B"], sizes["A"]


def _replaced(whole: Mapping[str, Tensor], entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Name in the model's files → a tensor that the adapter's file has whole: a head, a table."""
    found = {}
    for given, tensor in whole.items():
        name = given if given in entries else given.partition(".")[2]
        if name not in entries:
            raise ValueError(f"{TENSOR_FILE}: has {PREFIX + given!r}, which the model's files have no tensor for")
        if entries[name].shape != tuple(tensor.shape):
            shapes = f"{list(tensor.shape)}, the model's {name!r} is {list(entries[name].shape)}"
            raise ValueError(f"{TENSOR_FILE}: {PREFIX + given!r} has shape {shapes}")
        found[name] = tensor
    return found


def _by_path(tensors: Mapping[str, Tensor], method: str) -> dict[str, dict[str, Tensor]]:
    """Path → tensors by their whole names."""
    endings = tuple(f".{ending}" for ending in tensor_names(method).values())
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if ".lora_embedding_" in name:
            raise ValueError(f"{TENSOR_FILE}: {name!r} adapts an embedding, which is not supported")
        ending = next((ending for ending in endings if name.endswith(ending)), None)
        if ending is None or not name.startswith(PREFIX):
            raise ValueError(f"{TENSOR_FILE}: has {name!r}, which is no tensor of a {method} adapter")
        found.setdefault(name[len(PREFIX) : -len(ending)], {})[name] = tensor
    if not found:
        raise ValueError(f"{TENSOR_FILE}: expected an adapter's tensors, got none")
    return found


def _weight_names(paths: list[str], entries: Mapping[str, Entry]) -> dict[str, str]:
    """Path → name of its weight: all paths as they are, or each without its first part."""
    for shorten in (False, True):
        names = {path: f"{path.partition('.')[2] if shorten else path}.weight" for path in paths}
        if all(name in entries for name in names.values()):
            return names
    missing = next(path for path in paths if f"{path}.weight" not in entries)
    weights = [name.removesuffix(".weight") for name in entries if name.endswith(".weight")]
    near = difflib.get_close_matches(missing, weights, n=1, cutoff=0)
    hint = "; is its weight tied to another?" if missing.endswith("lm_head") else ""
    raise ValueError(
        f"adapter: the model's files have no {missing + '.weight'!r}, which it adapts{hint}"
        + (f" (the nearest is {near[0] + '.weight'!r})" if near and not hint else "")
    )


def _check_not_tied(names: Mapping[str, str], entries: Mapping[str, Entry]) -> None:
    """A head that is tied to the embeddings is read from one tensor for both."""
    for path, name in names.items():
        if name in _HEADS and name in entries:
            raise ValueError(
                f"adapter: {path!r} is tied to the embeddings (tie_word_embeddings in config.json), "
                "which merging would change"
            )


def _sideways(
    path: str, entry: Entry, out_features: int, in_features: int, tensors: Mapping[str, Tensor]
) -> bool | None:
    """Whether a weight is [K, N]; None where it is square."""
    if entry.shape == (out_features, in_features):
        return None if out_features == in_features else False
    if entry.shape == (in_features, out_features):
        return True
    shapes = " and ".join(f"{list(tensor.shape)}" for tensor in tensors.values() if tensor.ndim == 2)
    raise ValueError(f"adapter: {path!r} has factors {shapes}, the model's {entry.name!r} is {list(entry.shape)}")


def _of_square(sideways: Mapping[str, bool | None], fan_in_fan_out: bool) -> bool:
    """Whether square weights are [K, N]: as the other layers are, or as the configuration says where there are none.

    Raises ValueError where some are and some aren't.
    """
    seen = {turned for turned in sideways.values() if turned is not None}
    if len(seen) < 2:
        return seen.pop() if seen else fan_in_fan_out
    square = next((path for path, turned in sideways.items() if turned is None), None)
    if square is None:
        return False
    raise ValueError(
        f"adapter: the weight of {square!r} is square, and of the others some are [K, N] (Conv1D) and some [N, K]: "
        "which way it lies can't be told"
    )
