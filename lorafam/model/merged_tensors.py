"""The tensors of a merged model's files, one file of them at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..files import write_whole
from ..methods import LoraParameter
from ..methods.merge_report import MergeReport
from ..methods.stored_weight import DENSE
from .file_adapter import FileAdapter
from .stored_model import StoredModel
from .weight_files import Entry

Tensor = torch.Tensor


class Progress(Protocol):
    """Is told how far a merge is, in bytes written."""

    def begin(self, done: int, total: int) -> None: ...

    def tensor(self, name: str, nbytes: int) -> None: ...

    def shard(self, name: str, number: int, of: int, nbytes: int) -> None: ...

    def end(self) -> None: ...


class MergedTensors:
    """A model's tensors with an adapter merged into them. `entries`: those of its files, by name: the model's own, and
    what is no more tied.
    """

    def __init__(self, model: StoredModel, adapter: FileAdapter, settings: Mapping[str, Any]) -> None:
        self._adapter, self._threshold, self._into = adapter, settings["threshold"], settings["dtype"]
        self._dtype: torch.dtype | None = DENSE.get(settings["dtype"])
        self._groups, self._names = model.groups(), model.names()
        self._weights = {place.weight: path for path, place in adapter.places.items()}
        self._biases = {place.bias: path for path, place in adapter.places.items() if place.bias}
        self._changed = {*self._weights, *self._biases, *adapter.shared, *adapter.own, *adapter.rows}
        self._reports: dict[str, MergeReport] = {}
        self.entries = dict(model.entries)
        for name, source in adapter.untied.items():
            formed = model.formed[source]
            if formed.group is not None:
                raise ValueError(f"adapter: {name!r} is tied to {source!r}, which the model's files have in parts")
            stored = model.stored_name(name)
            self.entries[stored] = self.entries[formed.sources[0]]._replace(name=stored, source=formed.sources[0])
            self._names[stored] = name

    def write(self, file: Path, entries: Sequence[Entry], progress: Progress) -> dict[str, MergeReport]:
        """Writes these tensors; path → report of the layers whose weight is among them."""
        self._reports = {}
        tensors: dict[str, Tensor] = {}
        for entry in entries:
            tensor = self._stored(entry).contiguous()
            # what is no more tied may be in the same file
            tensors[entry.name] = tensor.clone() if entry.source is not None else tensor
            progress.tensor(entry.name, tensors[entry.name].nbytes)
        write_whole(file, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
        return self._reports

    def _stored(self, entry: Entry) -> Tensor:
        """What is written as an entry of the files."""
        group = self._groups.get(entry.name)
        if group is None:
            return self._merged(self._names.get(entry.name, entry.name), _read(entry))
        loaded = group.loaded({name: _read(self.entries[name]) for name in group.sources})
        if not self._changed.intersection(loaded):
            return self._narrowed(entry.name, _read(entry))
        merged = {name: self._merged(name, tensor) for name, tensor in loaded.items()}
        return group.stored(merged)[entry.name]

    def _merged(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the loaded model with all that the adapter does to it, in the dtype that is written."""
        dtype = tensor.dtype if self._dtype is None or not tensor.is_floating_point() else self._dtype
        adapter, source = self._adapter, self._adapter.untied.get(name, name)
        if source in adapter.shared:
            # a layer is merged in place
            tensor = adapter.shared[source].to(dtype, copy=True)
        if source in adapter.rows:
            tokens, rows = adapter.rows[source]
            tensor = tensor.index_copy(0, torch.tensor(tokens), rows.to(tensor.dtype))
        if name in adapter.own:
            return self._narrowed(name, adapter.own[name], dtype)
        if name in self._weights:
            return self._layer_merged(self._weights[name], tensor)
        if name in self._biases:
            return self._bias_merged(self._biases[name], tensor, dtype)
        return self._narrowed(name, tensor, dtype)

    def _layer_merged(self, path: str, tensor: Tensor) -> Tensor:
        turned = self._adapter.places[path].transposed
        layer = self._adapter.layer(path, tensor.T if turned else tensor)
        try:
            self._reports[path] = layer.merge(into=self._into, threshold=self._threshold)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if isinstance(layer, LoraParameter):
            return layer.own_parameter.detach()
        weight: Tensor = layer.base_layer.weight.detach()  # type: ignore[operator]
        return weight.T if turned else weight

    def _bias_merged(self, path: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        layer = self._adapter.layer(path, torch.empty(0, 0))
        with torch.no_grad():
            exact = layer.merged_bias(tensor.double())
        assert exact is not None
        return self._narrowed(f"{path}'s bias", exact, dtype)

    def _narrowed(self, name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        wanted = dtype or (self._dtype if tensor.is_floating_point() else None)
        if wanted is None:
            return tensor
        narrow = tensor.to(wanted)
        if wanted == torch.float16 and not narrow.isfinite().all():
            raise ValueError(f"dtype: {name} has values that fp16 can't hold, choose bf16 or fp32")
        return narrow


def _read(entry: Entry) -> Tensor:
    """Mapped, and private to this process: what is written into it never reaches the file."""
    with safe_open(entry.file, framework="pt") as file:
        return file.get_tensor(entry.source or entry.name)
