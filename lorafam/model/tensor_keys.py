"""Names without what wrappers put into them, and without adapters' names: as a bare model's state dict has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..methods.registry import EMBEDDINGS, METHODS

T = TypeVar("T")

# torch.compile's, activation checkpointing's and FSDP's
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_AROUND = {"base_layer", "token_adapter", "original_module"}
_ENDINGS = {ending for kind in (*METHODS.values(), *EMBEDDINGS.values()) for ending in kind.tensor_names.values()}
_TENSOR = re.compile(
    rf"(?P<path>.+)\.(?P<what>{'|'.join(sorted({ending.partition('.')[0] for ending in _ENDINGS}))})"
    r"(?:\.(?P<adapter>(?!(?:weight|bias)$)[^.]+))?(?:\.(?P<kind>weight|bias))?"
)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that torch.compile, DataParallel or DistributedDataParallel was given."""
    while True:
        inner: Any = model.module if isinstance(model, DataParallel | DistributedDataParallel) else None
        inner = model.__dict__.get("_modules", {}).get("_orig_mod") if inner is None else inner
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def clean_path(path: str) -> str:
    """A path without wrappers' parts."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def bare_key(name: str) -> str:
    """A parameter's name in the model without the layers that adapters, theirs or PEFT's, put around modules."""
    return ".".join(part for part in name.split(".") if part not in _AROUND)


def clean_keys(tensors: Mapping[str, T], prefix: str, file: str, *, own_module: bool = False) -> dict[str, T]:
    """Tensors under the names that PEFT writes: `prefix`, path, part of the adapter. `own_module`: "module" after the
    prefix is a part of the model.

    Raises ValueError for two that would have one name, as those of two adapters have.
    """
    cleaned: dict[str, T] = {}
    for key, tensor in tensors.items():
        name = clean_path(key)
        # DistributedDataParallel's, around the PEFT model or inside it
        for outer in (f"module.{prefix}", *(() if own_module else (f"{prefix}module.",))):
            if name.startswith(outer):
                name = prefix + name[len(outer) :]
        match = _TENSOR.fullmatch(name)
        if match:
            whole = f"{match['what']}.{match['kind']}"
            name = f"{match['path']}.{whole if whole in _ENDINGS else match['what']}"
        if name in cleaned:
            raise ValueError(f"{file}: {key!r} and another tensor both stand for {name!r}, expected one adapter's")
        cleaned[name] = tensor
    return cleaned
