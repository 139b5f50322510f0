"""A linear layer whose weight is stored in 4 bits: y = x Wᵀ + bias, W never in float as a whole."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import functional as F
from ..weights import NF4Weight, quantize_nf4
from .conv1d import is_conv1d

Tensor = torch.Tensor


class NF4Linear(nn.Module):
    """x [..., K] → [..., N] in x's dtype. `weight` is an `NF4Weight` (NF4 or FP4), frozen; `bias` a frozen parameter or
    None.

    Its tensors are buffers, so that the layer moves and is saved as any other; `.to(dtype)`, `.half()` and the like
    leave the codes and their scales as they are, since rounding the scales would change the weight. `source`: the layer
    in whose place it stands, an nn.Linear for None.
    """

    def __init__(self, weight: NF4Weight, bias: Tensor | None = None, source: nn.Module | None = None) -> None:
        super().__init__()
        # the class of the layer that it replaces, under the name that transformers gives it: merged, it is one again
        self.source_cls = nn.Linear if source is None else getattr(source, "source_cls", type(source))
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.weight = weight

    @classmethod
    def from_linear(
        cls, linear: nn.Module, block_size: int = 64, double_quant: bool = True, quant_type: str = "nf4"
    ) -> NF4Linear:
        """Quantises the weight of an nn.Linear or a Conv1D (transformers'); the bias is kept as it is.

        Raises TypeError for anything else, ValueError for a weight that isn't finite.
        """
        if type(linear) is not nn.Linear and not is_conv1d(linear):
            raise TypeError(f"linear: expected an nn.Linear, got {type(linear).__name__}")
        dense: Any = linear.weight.detach()  # type: ignore[operator]
        dense = dense.T.contiguous() if is_conv1d(linear) else dense
        weight = quantize_nf4(dense, block_size, double_quant, quant_type=quant_type)
        layer = cls(weight, linear.bias, linear)  # type: ignore[arg-type]
        return layer.train(linear.training)

    @property
    def weight(self) -> NF4Weight:
        """Over the buffers that are there now: `torch.func.functional_call` puts others in for a while."""
        if all(map(operator.is_, self._buffers.values(), self._tensors)):
            return self._weight
        return self._weight.with_tensors({name: self.get_buffer(name) for name in self._weight.tensors()})

    @weight.setter
    def weight(self, weight: NF4Weight) -> None:
        if tuple(weight.shape) != (self.out_features, self.in_features):
            raise ValueError(
                f"weight: expected shape {[self.out_features, self.in_features]}, got {list(weight.shape)}"
            )
        self._weight, self._tensors = weight, (weight.codes, *weight.scales)
        for name, tensor in weight.tensors().items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return F.nf4_linear(x, self.weight, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NF4Linear:
        buffers, self._buffers = self._buffers, {}
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers = buffers
        # as bytes a tensor changes device but never dtype
        moved = {name: _moved(fn, tensor) for name, tensor in buffers.items() if tensor is not None}
        self.weight = self._weight.with_tensors(moved)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self._weight.double_quant:
            # all weights on a device share this table: loading must not write into it
            self.register_buffer("nested_levels", self.get_buffer("nested_levels").clone())
        super()._load_from_state_dict(*args, **kwargs)
        # the buffers were copied into in place: what the weight keeps about itself is stale; assigned ones may be views
        tensors = {name: getattr(self, name).resolve_neg().contiguous() for name in self._weight.tensors()}
        self.weight = self._weight.with_tensors(tensors)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._weight.double_quant:
            # a tensor that layers share is refused by safetensors, and so by save_pretrained and Trainer
            destination[f"{prefix}nested_levels"] = self.get_buffer("nested_levels").clone()

    def extra_repr(self) -> str:
        weight = self._weight
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"quant_type={weight.quant_type}, block_size={weight.block_size}, double_quant={weight.double_quant}"
        )


def _moved(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    given = (tensor if tensor.ndim else tensor.reshape(1)).view(torch.uint8)
    found = fn(given)
    # `.type(dtype)` converts integers too
    bytes_ = found if found.dtype == torch.uint8 else given.to(found.device)
    return bytes_.view(tensor.dtype).reshape(tensor.shape)
