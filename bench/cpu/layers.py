"""The calls that are compared: lorafam's layers and products, and everybody else's, on the same weight and input."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear

from lorafam import functional as F

from ..case import Case
from ..contenders import forward_of, train_of
from ..peers.eager import decoder
from ..peers.peft_layer import peft_layer
from . import onnx_peer

Call = Callable[[], object]


def layer_calls(case: Case, direction: str, other: str = "peft") -> dict[str, Call]:
    """lorafam and another contender in training, "forward" or "train" (forward and backward)."""
    make = train_of if direction == "train" else lambda name, case: forward_of(name, case)[0]
    return {name: make(name, case) for name in ("lorafam", other)}


def evaluation_calls(case: Case) -> dict[str, Call]:
    """The same layers in evaluation without gradients, where lorafam keeps DoRA's norm."""
    theirs, _ = peft_layer(case)
    layers: dict[str, Any] = {"lorafam": case.layer.eval(), "peft": theirs.eval()}
    return {name: _without_gradients(functools.partial(layer, case.x)) for name, layer in layers.items()}


def dense_calls(case: Case, direction: str) -> dict[str, Call]:
    """lorafam's layer beside the dense product in the same dtype, in "train" beside that and its gradient's product."""
    weight, x, grad_y = decoder(case)(), case.x.detach(), case.grad_y
    if direction == "forward":
        return {"lorafam": forward_of("lorafam", case)[0], "dense": lambda: linear(x, weight)}
    return {"lorafam": train_of("lorafam", case), "dense": lambda: (linear(x, weight), grad_y @ weight)}


def product_calls(case: Case) -> dict[str, Call]:
    """The 4-bit product without an adapter: lorafam's, the dense one, bitsandbytes' own evaluation kernel where this
    processor has it, ONNX Runtime's for fp32.
    """
    import bitsandbytes

    packed: Any = case.layer.base_layer.weight
    x = case.x.detach()
    weight = decoder(case)()
    calls: dict[str, Call] = {"lorafam": lambda: F.nf4_linear(x, packed), "dense": lambda: linear(x, weight)}
    if bitsandbytes.functional.has_avx512bf16():
        calls["bitsandbytes"] = _without_gradients(_evaluation_kernel(case))
    if case.dtype == torch.float32 and not onnx_peer.MISSING:
        calls["onnxruntime"] = onnx_peer.make(weight, x)
    return {name: _without_gradients(call) for name, call in calls.items()}


def _evaluation_kernel(case: Case) -> Call:
    """bitsandbytes' Linear4bit in evaluation, whose first call packs its own copy of the weight anew."""
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(case.in_features, case.out_features, bias=False, compute_dtype=case.dtype)
    layer.weight = bitsandbytes.nn.Params4bit(decoder(case)(), requires_grad=False, quant_type="nf4").to("cpu")
    layer.eval()
    x = case.x.detach()
    return lambda: layer(x)


def _without_gradients(call: Call) -> Call:
    def quietly() -> object:
        with torch.no_grad():
            return call()

    return quietly
