"""LoRAFusion: Triton products whose accumulator starts from the low-rank part, for a dense base.

`fused_linear_lora(x, linear_w, lora_a, lora_b, alpha, seed, dropout_p, linear_bias)`, alpha being the scaling, wants
x [batch, tokens, K] and everything in one dtype (github.com/CentML/lorafusion, lorafusion/ops/lora_v1.py at
8ce211989d052db882ff15938cbca49860014d14). Its kernels for NF4 are marked experimental, have no backward and aren't
called from there.
"""

from __future__ import annotations

from ..case import Case
from .peer import Forward, Peer, Tensor


def make(case: Case) -> tuple[Forward, list[Tensor]]:
    from lorafusion.ops.lora_v1 import fused_linear_lora

    weight = case.layer.base_layer.weight
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in case.leaves().items()}
    scaling = float(case.settings()["scaling"])

    def forward() -> Tensor:
        y = fused_linear_lora(
            x=case.x.unsqueeze(0),
            linear_w=weight,
            lora_a=leaves["A"],
            lora_b=leaves["B"],
            alpha=scaling,
            dropout_p=0.0,
        )
        return y.squeeze(0)

    return forward, list(leaves.values())


PEER = Peer("lorafusion", "LoRAFusion", ("lorafusion",), ("lora",), make)
