"""Bytes that a layer's forward keeps for the backward, beyond its own parameters and 4-bit codes, beside PEFT's.

Ours are x, P [M, r] in fp32 and the seed; DoRA adds the output it returns. PEFT keeps the dropped x as well, or a mask,
and for DoRA the products before they are scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes
import peft
import pytest
import torch
from torch import nn

from lorafam import NF4Linear
from lorafam.methods import METHODS

M, K, N, RANK = 512, 256, 192, 8
BYTES = 4


def saved_bytes(call: Callable[[torch.Tensor], torch.Tensor], module: nn.Module) -> int:
    """Bytes of the distinct storages that autograd keeps, without those of the module's parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    # bitsandbytes keeps its scales outside the module's tensors
    own |= {
        tensor.untyped_storage().data_ptr()
        for part in module.modules()
        if isinstance(part, bitsandbytes.nn.Linear4bit)
        for tensor in (part.weight.quant_state.absmax, part.weight.quant_state.code)
    }
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    x = torch.randn(M, K, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = call(x)
    y.sum().backward()
    return sum(storage.nbytes() for storage in storages.values())


def ours(method: str, dense: nn.Linear, quantised: bool, dropout: float, **settings: Any) -> nn.Module:
    base = NF4Linear.from_linear(dense) if quantised else dense
    layer = METHODS[method](base, r=RANK, dropout=dropout, **settings).train()
    with torch.no_grad():
        for parameter in layer.active.parameters():
            parameter.add_(0.1)
    return layer


def pefts(method: str, dense: nn.Linear, quantised: bool, dropout: float) -> nn.Module:
    holder = nn.Module()
    base: nn.Module = dense
    if quantised:
        base = bitsandbytes.nn.Linear4bit(K, N, compute_dtype=torch.float32, quant_type="nf4", device="cpu")
        base.weight = bitsandbytes.nn.Params4bit(dense.weight.detach(), requires_grad=False, quant_type="nf4")
        base.to("cpu").support_avx512bf16_for_cpu = False
        holder.is_loaded_in_4bit = True  # type: ignore[assignment]
    holder.add_module("linear", base)
    if method == "vera":
        # its layers share what the tuner keeps
        config: Any = peft.VeraConfig(r=RANK, vera_dropout=dropout, target_modules=["linear"])
        return peft.get_peft_model(holder, config).base_model.model.linear.train()
    if method == "adalora":
        config = peft.AdaLoraConfig(
            init_r=RANK, target_r=RANK, total_step=1, lora_dropout=dropout, target_modules=["linear"]
        )
    else:
        config = peft.LoraConfig(r=RANK, lora_dropout=dropout, use_dora=method == "dora", target_modules=["linear"])
    return peft.inject_adapter_in_model(config, holder).linear.train()


def expected(method: str, dropout: float) -> int:
    """x, P, the seed; DoRA's output and n [N]; AdaLoRA's scale of B [r] and what it was formed with;
    VeRA's diag(b) B.
    """
    size = BYTES * M * K + BYTES * M * RANK + (8 if dropout else 0)
    if method == "dora":
        size += BYTES * M * N + BYTES * N
    if method == "adalora":
        size += BYTES * RANK + 8
    if method == "vera":
        size += BYTES * N * RANK
    return size


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("quantised", [False, True], ids=["dense", "nf4"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_saved_bytes(method: str, quantised: bool, dropout: float) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(K, N)
    dense.requires_grad_(False)
    layer = ours(method, dense, quantised, dropout)
    theirs = pefts(method, dense, quantised, dropout)
    mine, others = saved_bytes(layer, layer), saved_bytes(theirs, theirs)
    assert mine == expected(method, dropout)
    if method == "vera":
        # PEFT's saves an output [M, N] a layer and no x, which is one for q, k and v
        others += BYTES * (M * (K - N) + N * RANK)
    assert mine <= others * (0.6 if method == "dora" or (dropout and method != "vera") else 1)
