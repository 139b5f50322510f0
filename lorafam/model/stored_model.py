"""A model's files seen under the names that its tensors have when they are loaded.

transformers renames, joins and parts tensors when it loads, and so does PEFT with an adapter's names. Where it isn't
installed, or doesn't know the model's class, names are those of the files, the bare model's ones too (h.0 for
transformer.h.0).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..compat.loading import Formed, JoinedTensors, Loading, loading
from .weight_files import CONFIG, Entry, read_json

HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")


class StoredModel:
    """`formed`: name in the loaded model → the files' tensors that it is formed of."""

    def __init__(self, folder: Path, entries: Mapping[str, Entry]) -> None:
        self.entries = entries
        reads: Loading | None = loading(folder, {name: entry.shape for name, entry in entries.items()})
        self._loading = reads
        if reads is None:
            self.formed = {name: Formed((name,), entry.shape, None) for name, entry in entries.items()}
            self._says_tied = _says_tied(read_json(folder / CONFIG, "model"))
        else:
            self.formed, self._says_tied = reads.formed, False

    def find(self, name: str) -> str | None:
        """A parameter's name in the model whose adapter it is, in this one; None where it has no such parameter."""
        if name in self.formed or self.tied_to(name) is not None:
            return name
        if self._loading is not None:
            renamed = self._loading.renamed(name)
            if renamed in self.formed or self.tied_to(renamed) is not None:
                return renamed
        shorter = name.partition(".")[2]
        return shorter if shorter in self.formed else None

    def tied_to(self, name: str) -> str | None:
        """The name under which the files have the tensor of this one, which is tied to it."""
        return None if self._loading is None else self._loading.tied.get(name)

    def tied_with(self, name: str) -> list[str]:
        """What is tied to a tensor that the files have."""
        return [] if self._loading is None else [one for one, other in self._loading.tied.items() if other == name]

    def all_tied(self) -> dict[str, str]:
        """Name → the name whose tensor it has."""
        return {} if self._loading is None else dict(self._loading.tied)

    def may_be_tied(self, name: str) -> bool:
        """Whether a table is said to be tied to another, and it can't be known which."""
        return self._says_tied and (name in HEADS or "embed" in name or "wte" in name)

    def stored_name(self, name: str) -> str:
        """What to call a tensor in the files that they don't have yet. Raises ValueError where it isn't known."""
        if self._loading is None or not self._loading.is_stored_as_it_is(name):
            raise ValueError(f"model: it isn't known how {name!r} is called in its files")
        return name

    def entry(self, name: str) -> Entry:
        """The first of the files' tensors."""
        return self.entries[self.formed[self.tied_to(name) or name].sources[0]]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the loaded tensor."""
        return self.formed[self.tied_to(name) or name].shape

    def lies_sideways(self, name: str) -> bool | None:
        """Whether a weight is [K, N] (Conv1D); None where it isn't known."""
        return None if self._loading is None else name in self._loading.sideways

    @property
    def skeleton(self) -> Any:
        """The loaded model without memory; None where its class isn't known."""
        return None if self._loading is None else self._loading.model

    def input_table(self) -> str | None:
        """The name of the weight of the input embeddings; None where the model's class isn't known, or has none."""
        get = getattr(self.skeleton, "get_input_embeddings", None)
        table = get() if callable(get) else None
        every = [] if table is None else self.skeleton.named_modules()
        return next((f"{path}.weight" for path, module in every if module is table), None)

    def groups(self) -> dict[str, JoinedTensors]:
        """Name in the files → how it is joined with others or parted."""
        return {source: one.group for one in self.formed.values() if one.group is not None for source in one.sources}

    def names(self) -> dict[str, str]:
        """Name in the files → name in the loaded model, of tensors that are neither joined nor parted."""
        return {one.sources[0]: name for name, one in self.formed.items() if one.group is None}

    def nearest(self, name: str) -> str | None:
        """The nearest name of a weight."""
        weights = [one.removesuffix(".weight") for one in self.formed if one.endswith(".weight")]
        near = difflib.get_close_matches(name.removesuffix(".weight"), weights, n=1, cutoff=0)
        return f"{near[0]}.weight" if near else None


def _says_tied(config: Mapping[str, Any]) -> bool:
    parts: Any = [config, *(value for value in config.values() if isinstance(value, dict))]
    return any(bool(part.get("tie_word_embeddings")) for part in parts)
