"""What transformers makes of a model folder's tensors when it loads them: other names, tensors joined or parted, some
of them tied. Seen in 5.24.0.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor


class Formed(NamedTuple):
    """A tensor of the loaded model: the tensors of the files that it is formed of, by themselves or with others."""

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    # None where it is the only source under another name, or under the same
    group: JoinedTensors | None


@dataclass
class JoinedTensors:
    """Tensors of the files that are joined into, or parted into, others: both ways as transformers does it."""

    model: Any
    converter: Any
    first: str
    # name in the files → the pattern that it matched
    sources: dict[str, str] = field(default_factory=dict)

    def loaded(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name in the files → tensor, to name in the model → tensor."""
        converter = copy.deepcopy(self.converter)
        for name, pattern in self.sources.items():
            converter.add_tensor(self.first, name, pattern, tensors[name])
        made = converter.convert(self.first, model=self.model, config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Back again."""
        from transformers.core_model_loading import revert_weight_conversion

        found: dict[str, Tensor] = revert_weight_conversion(self.model, dict(tensors))
        missing = self.sources.keys() - found.keys()
        if missing:
            raise ValueError(f"model: {sorted(missing)[0]!r} can't be formed again from what it is loaded as")
        return found


@dataclass
class Loading:
    """`formed`: name in the loaded model → what it is made of. `tied`: name → the name whose tensor it has, where the
    files have one of the two. `sideways`: weights [K, N] (Conv1D). `model`: without memory.
    """

    formed: dict[str, Formed]
    tied: dict[str, str]
    sideways: set[str]
    model: Any
    _rename: Any

    def renamed(self, name: str) -> str:
        """A name that earlier versions of transformers had, as the model's."""
        return str(self._rename(name)[0])

    def is_stored_as_it_is(self, name: str) -> bool:
        """Whether a tensor of this name in the files is loaded under the same."""
        return self._rename(name) == (name, None)


Rename = Callable[[str], tuple[str, str | None]]


def renaming(model: Any, names: Set[str]) -> tuple[list[Any], Rename]:
    """What transformers does to tensors of the files of a `model` with parameters of these names: all of its rules, and
    a name in the files → the model's name and the pattern by which the tensor is joined or parted, if it is.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    state = dict.fromkeys(names, True)

    def rename(name: str) -> tuple[str, str | None]:
        found = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if found[0] not in state and name in state:
            found = rename_source_key(name, [], [], model.base_model_prefix, state)
        return found[0], found[1]

    return conversions, rename


def loading(folder: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]) -> Loading | None:
    """How a folder with tensors of these `shapes` is loaded; None where transformers isn't there, or doesn't have the
    class that config.json names.
    """
    try:
        import transformers
        from transformers.core_model_loading import WeightConverter, dot_natural_key
        from transformers.pytorch_utils import Conv1D
    except ImportError:
        return None
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError):
        # a class of its own, which isn't in transformers
        return None
    kind = getattr(transformers, next(iter(getattr(config, "architectures", None) or []), ""), None)
    if kind is None:
        return None
    with torch.device("meta"):
        model: Any = kind(config)
    state = model.state_dict()
    conversions, rename = renaming(model, state.keys())
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    formed: dict[str, Formed] = {}
    groups: dict[str, JoinedTensors] = {}
    for name in sorted(shapes, key=dot_natural_key):
        renamed, pattern = rename(name)
        if pattern is None:
            formed[renamed] = Formed((name,), tuple(shapes[name]), None)
        elif renamed in state:
            group = groups.setdefault(renamed, JoinedTensors(model, by_pattern[pattern], renamed))
            group.sources[name] = pattern
    # as a loaded model remembers it for saving: before transformers 5.6 all of them
    model._weight_conversions = [entry for entry in conversions if not hasattr(entry, "was_used") or entry.was_used()]
    for group in groups.values():
        made = group.loaded({name: torch.empty(shapes[name], device="meta") for name in group.sources})
        for name, tensor in made.items():
            formed[name] = Formed(tuple(group.sources), tuple(tensor.shape), group)
    tied: dict[str, str] = {}
    for target, source in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        if source in formed and target not in formed:
            tied[target] = source
        elif target in formed and source not in formed:
            tied[source] = target
    sideways = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, Conv1D)}
    return Loading(formed, tied, sideways, model, rename)
