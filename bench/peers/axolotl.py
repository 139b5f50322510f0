"""axolotl: one autograd Function for a projection with LoRA or DoRA, its norm in a Triton kernel.

`apply_lora_o(self, X)` reads the PEFT layer at `self.o_proj` and wants X [batch, tokens, K]
(github.com/axolotl-ai-cloud/axolotl, src/axolotl/kernels/lora.py at 00564c8f9909b0a895823b620145c0618991cb55). It
multiplies the low-rank part in x's dtype.

It keeps DoRA's norm until A's or B's version changes, which each optimiser step does. Here the version is moved on
before each call, so that the norm is formed on each, as the others form it.
"""

from __future__ import annotations

from types import SimpleNamespace

from torch.autograd.graph import increment_version

from ..case import Case
from .peer import Forward, Peer, Tensor


def make(case: Case) -> tuple[Forward, list[Tensor]]:
    from axolotl.kernels.lora import apply_lora_o

    from .peft_layer import peft_layer

    layer, leaves = peft_layer(case)
    attention = SimpleNamespace(o_proj=layer, training=True)

    def forward() -> Tensor:
        increment_version(leaves)
        return apply_lora_o(attention, case.x.unsqueeze(0)).squeeze(0)

    return forward, leaves


PEER = Peer("axolotl", "axolotl", ("axolotl", "peft"), ("lora", "qlora", "qdora"), make)
