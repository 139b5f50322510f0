"""Unsloth: one autograd Function for a projection with LoRA, without dropout, bias or DoRA.

`apply_lora_o(self, X)` reads the PEFT layer at `self.o_proj` and wants X [batch, tokens, K]
(github.com/unslothai/unsloth, unsloth/kernels/fast_lora.py at 0050c73e05ca9bb74e42d0649be410f177160c08). It multiplies
the low-rank part in x's dtype. Its separate path for generating one token has no gradient and isn't timed.
"""

from __future__ import annotations

from types import SimpleNamespace

from ..case import Case
from .peer import Forward, Peer, Tensor


def make(case: Case) -> tuple[Forward, list[Tensor]]:
    # before PEFT, which it patches
    from unsloth.kernels.fast_lora import apply_lora_o

    from .peft_layer import peft_layer

    layer, leaves = peft_layer(case)
    attention = SimpleNamespace(o_proj=layer)
    return lambda: apply_lora_o(attention, case.x.unsqueeze(0)).squeeze(0), leaves


PEER = Peer("unsloth", "Unsloth", ("unsloth", "peft"), ("lora", "qlora"), make)
