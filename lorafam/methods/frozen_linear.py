"""A large frozen nn.Linear without an adapter, an output head above all, on lorafam's CPU products: made one by
changing its class, so that its parameters, tied ones too, and their names stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import nn

from .. import functional as F
from ..backends.selection import kernels_of_a_direction
from ..compat.torch import is_transformed, is_watched
from .logits import VARIABLE, logits_of

Tensor = torch.Tensor
# weights: below, a call costs as much as what a product could save
LEAST = 1 << 20
# bytes of logits: below, they cost little
LEAST_LOGITS = 4 << 20
# times as many words as features: what isn't an output head has fewer
TALL = 6


class _Original:
    """What the class was, under the name by which accelerated layers are found."""

    def swap_back(self, layer: FrozenLinear) -> None:
        """Makes the layer what it was."""
        del layer._lorafam
        layer.__class__ = nn.Linear  # type: ignore[assignment]


class FrozenLinear(nn.Linear):
    """x [..., K] → [..., N]: the faster of lorafam's product and the platform's while W is frozen and on the CPU, else
    nn.Linear's own forward.
    """

    _lorafam: _Original

    def forward(self, input: Tensor) -> Tensor:
        if self.lorafam_reason(input) is not None:
            return super().forward(input)
        if can_wait(input, self.weight, self.bias):
            return logits_of(input, self.weight, self.bias)
        return F.nf4_linear(input, self.weight, self.bias)

    def lorafam_reason(self, x: Tensor | None = None) -> str | None:
        """Why nn.Linear's own forward runs, for tokens x or for any; None where lorafam's does."""
        weight = self.weight
        if weight.requires_grad:
            return "its weight trains"
        if type(weight) is not nn.Parameter or not weight.is_cpu:
            return "its weight isn't a plain tensor on the CPU"
        if torch.compiler.is_compiling():
            return "a compiled graph has the platform's product"
        if is_transformed():
            return "torch.func or forward-mode AD is at work"
        if x is None:
            return None
        if not x.is_cpu or x.shape[-1:] != weight.shape[1:]:
            return "x is on another device or of another size than the weight"
        if x.dtype != weight.dtype and not torch.is_autocast_enabled("cpu"):
            return "x has another dtype than the weight"
        return None

    def _get_name(self) -> str:
        return nn.Linear.__name__


def frozen_layers(module: nn.Module, without: tuple[type, ...]) -> Iterator[tuple[str, nn.Linear]]:
    """Large nn.Linear layers with a frozen weight on the CPU, in no layer of a class of `without`, each by name."""
    inside: tuple[str, ...] = ()
    for name, child in module.named_modules():
        if isinstance(child, without):
            inside += (f"{name}." if name else "",)
        elif type(child) in (nn.Linear, FrozenLinear) and not name.startswith(inside):
            weight = child.weight
            if type(weight) is nn.Parameter and weight.is_cpu and not weight.requires_grad and weight.numel() >= LEAST:
                yield name, child


def freeze_layer(layer: nn.Linear) -> None:
    """Makes the layer a `FrozenLinear`."""
    if type(layer) is nn.Linear:
        layer.__class__ = FrozenLinear
        layer._lorafam = _Original()  # type: ignore[assignment]


def thaw_layers(module: nn.Module) -> None:
    """Makes every `FrozenLinear` in the module an nn.Linear again."""
    for child in module.modules():
        if isinstance(child, FrozenLinear):
            child._lorafam.swap_back(child)


def is_head(weight: Tensor) -> bool:
    """Whether a weight is an output head's, by its shape."""
    return weight.shape[0] >= TALL * weight.shape[1]


def can_wait(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a head's values may be computed later, and are worth it."""
    rows, columns = weight.shape
    size = x.numel() // columns * rows * x.element_size()
    if size < LEAST_LOGITS or not is_head(weight) or x.ndim < 2:
        return False
    if type(x) is not Tensor or x.dtype not in (torch.float32, torch.bfloat16) or weight.dtype != x.dtype:
        return False
    if not weight.is_contiguous() or (bias is not None and bias.requires_grad):
        return False
    if torch.is_inference_mode_enabled() or x.is_inference() or weight.is_inference():
        return False
    if torch.is_autocast_enabled("cpu") or is_watched():
        return False
    # weights that several processes share may be gone when the values are asked for
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return False
    wanted = os.environ.get(VARIABLE, "lazy")
    if wanted not in ("lazy", "eager"):
        raise ValueError(f"{VARIABLE}: expected lazy or eager, got {wanted!r}")
    return wanted == "lazy" and kernels_of_a_direction() is not None
