"""The LoRA family on plain tensors: every method is a choice of B̂ and c in

    P = drop(x) Aᵀ        Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias

x [..., K] of any leading shape, `weight` a dense tensor [N, K] or an `NF4Weight`, A [r, K], B [N, r], bias [N] → Y
[..., N] in x's dtype. W is frozen; gradients flow to x, A, B, E, magnitude and bias. Under autocast x (and a dense W)
takes autocast's dtype unless it is fp64, the factors keep theirs. Wrong shapes, dtypes or devices raise ValueError or
TypeError naming the argument.
"""

from .. import backends as backends
from .grouped import grouped_lora_linear
from .linear import adalora_linear, adalora_scale, dora_linear, lora_linear, low_rank, nf4_linear
from .loss import linear_cross_entropy
from .norms import orthogonality_penalty, row_norm

__all__ = [
    "adalora_linear",
    "adalora_scale",
    "dora_linear",
    "grouped_lora_linear",
    "linear_cross_entropy",
    "lora_linear",
    "low_rank",
    "nf4_linear",
    "orthogonality_penalty",
    "row_norm",
]
