"""Eager PyTorch in PEFT's order of operations; an NF4 base is decoded on each call: by bitsandbytes, to the same bits
by lorafam's eager PyTorch where bitsandbytes isn't installed, which is for comparing results and not for timing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from lorafam.backends.eager import dequantize_4bit
from lorafam.reference import peft_order
from lorafam.weights import NF4Weight

from ..case import Case

Tensor = torch.Tensor


def make(case: Case) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Its forward, and the adapter tensors in the order of `case.leaves()`."""
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in case.leaves().items()}
    function = getattr(peft_order, f"{case.method}_linear")
    decode = decoder(case)

    def forward() -> Tensor:
        return function(x=case.x, weight=decode(), **leaves, **case.settings())

    return forward, list(leaves.values())


def decoder(case: Case) -> Callable[[], Tensor]:
    """The dense weight; of a 4-bit one as bitsandbytes decodes it, on each call."""
    weight = case.layer.base_layer.weight
    if not isinstance(weight, NF4Weight):
        return lambda: weight  # type: ignore[return-value]
    if importlib.util.find_spec("bitsandbytes") is None:
        return lambda: dequantize_4bit(*weight.storage(), case.dtype)
    import bitsandbytes

    packed = weight.to_bitsandbytes()
    return lambda: bitsandbytes.functional.dequantize_4bit(packed.data, packed.quant_state).to(case.dtype)
