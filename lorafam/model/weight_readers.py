"""Modules that compute with a child's weight themselves, not by calling the child: an adapter on it would be skipped.

`nn.MultiheadAttention` multiplies by `out_proj.weight`, Mamba's fused kernels take their projections' weights. Found in
the source of a module's classes; where only `weight.dtype` and the like are asked for, nothing is skipped, nor where
the module's settings keep it from getting there (Bloom's `if self.pretraining_tp > 1`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from ..compat.transformers import RESCALED, rescales_every
from ..compat.trl import skips_head
from ..methods import AdapterLayer
from ..methods.base_weight import is_bitsandbytes_4bit
from .weights_read import weights_read


def reader_of(model: nn.Module, path: str) -> str:
    """The class of the module that reads the weight at `path` itself, or changes it; empty where none does."""
    module = model.get_submodule(path)
    four_bits = is_bitsandbytes_4bit(getattr(module, "base_layer", module))
    rescaler, exponent = rescaler_of(model, path)
    if rescaler and (exponent or four_bits):
        return rescaler
    for module, name in _around(model, path):
        # its fast path alone, which `stop_fast_paths` shuts
        if isinstance(module, nn.TransformerEncoderLayer):
            continue
        if any(read.name == name and read.happens_in(module) for read in weights_read(cast(Any, type(module)))):
            return type(module).__name__
    return ""


def rescaler_of(model: nn.Module, path: str) -> tuple[str, int]:
    """The class of the module that divides the weight at `path` by a power of two in place when it evaluates (RWKV),
    and the exponent; ("", 0) where none does.
    """
    for module, name in _around(model, path):
        every = rescales_every(module)
        found = RESCALED.fullmatch(name) if every else None
        if found:
            return type(module).__name__, int(found["block"]) // every
    return "", 0


def _around(model: nn.Module, path: str) -> Iterator[tuple[nn.Module, str]]:
    """The modules that the one at `path` is in, the outermost first, and its path there."""
    module, parts = model, path.split(".")
    for count, part in enumerate(parts):
        yield module, ".".join(parts[count:])
        module = module.get_submodule(part)


def stop_fast_paths(model: nn.Module) -> None:
    """Sends nn.TransformerEncoderLayer through its modules: its fused evaluation reads their weights."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0


def watch_head(model: nn.Module) -> None:
    """Where the output head has an adapter, refuses calls of another forward that would skip it."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    if isinstance(head, AdapterLayer) and _check_forward not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_check_forward, with_kwargs=True)


def _check_forward(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
    head = model.get_output_embeddings()
    if not isinstance(head, AdapterLayer):
        # merged since
        return
    path = next(path for path, module in model.named_modules() if module is head)
    if skips_head(model, path.rpartition(".")[2], kwargs):
        raise ValueError(
            f"target_modules: the adapter of {path!r} would be skipped: this trainer multiplies by the weight of the "
            "output head itself; leave the head out, or train it whole (modules_to_save)"
        )
