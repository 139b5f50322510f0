"""What transformers does to a model's tables and head by name, while adapters are around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..methods import AdapterLayer
from ..methods.lora_embedding import LoraEmbedding
from .adapt import adapter_layers
from .base_tensors import base_parameters, remember_base_tensors
from .saved_module import SavedModule
from .token_rows import TokenRows

_AROUND = (AdapterLayer, SavedModule, TokenRows)


def tie_weights(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """`tie_weights` of the bare model: bases are tied, adapters, their rows and copies stay as they are.

    Raises ValueError where a layer is merged, whose base isn't the model's own.
    """
    for path, layer in adapter_layers(model).items():
        if layer.merged:
            raise ValueError(f"tie_weights: {path!r} is merged, unmerge it first")
    with _bases_in_place(model):
        type(model).tie_weights(model, *args, **kwargs)  # type: ignore[attr-defined]


@torch.no_grad()
def train_as_one(model: Any, name: str) -> None:
    """Has an adapter's parts of table and head share memory where they are the same values, as PEFT has it for a file
    that ties them (ensure_weight_tying): both gradients change both.
    """
    table, head = (getattr(model, f"get_{one}_embeddings", lambda: None)() for one in ("input", "output"))
    parts: list[Any] = [_part(end, name) for end in (table, head)]
    if any(part is None for part in parts):
        return
    first, second = parts
    both_copies = isinstance(table, SavedModule) and isinstance(head, SavedModule)
    if both_copies and torch.equal(first.weight, second.weight):
        second.weight = first.weight
    elif isinstance(table, LoraEmbedding) and isinstance(head, AdapterLayer):
        for ours, theirs in (("A", "B"), ("B", "A")):
            old, new = getattr(second, ours), getattr(first, theirs).T
            if old.shape == new.shape and torch.equal(old, new):
                setattr(second, ours, nn.Parameter(new, old.requires_grad))


def _part(end: Any, name: str) -> nn.Module | None:
    """What an adapter has of a table or a head."""
    if isinstance(end, SavedModule):
        return end.copies[name] if end.has(name) else None
    return end.adapters[name] if isinstance(end, AdapterLayer) and name in end.adapters else None


def resize_token_embeddings(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """transformers' own; adapters' files have the resized tables from then on. Raises ValueError where an adapter is of
    the table or the head, whose number of tokens it would keep.
    """
    ends = [getattr(model, f"get_{name}_embeddings")() for name in ("input", "output")]
    for path, module in model.named_modules():
        if isinstance(module, _AROUND) and any(end is module for end in ends):
            raise ValueError(
                f"resize_token_embeddings: {path!r} has an adapter for the tokens that there are: resize the bare "
                "model, then adapt it"
            )
    # a weight may get other values in place
    before = {name: weight.shape for name, weight in _tables(model).items()}
    embeddings = type(model).resize_token_embeddings(model, *args, **kwargs)  # type: ignore[attr-defined]
    after = _tables(model)
    # tied ones once
    names = {id(weight): name for name, weight in reversed(after.items()) if weight.shape != before.get(name)}
    remember_base_tensors(model, list(names.values()))
    # files for the tables as they were are right for their tokens
    resized = getattr(model, "lorafam_resized_tensors", ())
    model.lorafam_resized_tensors = tuple({*resized, *names.values()})  # type: ignore[assignment]
    return embeddings


def _tables(model: Any) -> dict[str, nn.Parameter]:
    """Name in the bare model → weight of the embeddings and of the head."""
    weights = [end.weight for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    return {
        name: weight
        for name, (_, weight) in base_parameters(model).items()
        if any(weight is one for one in weights) and name.endswith("weight")
    }


@contextmanager
def _bases_in_place(model: nn.Module) -> Iterator[None]:
    """Inside, the modules that adapters are around stand in their places, under the bare model's names."""
    around = [
        (parent, name, child)
        for parent in model.modules()
        if not isinstance(parent, _AROUND)
        for name, child in parent._modules.items()
        if isinstance(child, _AROUND)
    ]
    try:
        for parent, name, child in around:
            base: Any = child
            while isinstance(base, _AROUND):
                base = base.base_layer
            parent._modules[name] = base
        yield
    finally:
        for parent, name, child in around:
            parent._modules[name] = child
