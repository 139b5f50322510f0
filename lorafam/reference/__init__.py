"""The mathematics of lorafam in eager PyTorch, on dense tensors of one floating-point dtype, differentiable.

Every fast path is measured against these functions, called in fp64. One equation a file:

    low_rank_linear       Y = c ∘ (x Wᵀ + drop(x) Aᵀ B̂ᵀ) + bias, the formula of the whole family, and its gradient
    nf4_linear, lora, adalora, dora, vera what B̂ and c are for each method
    row_norm              ‖W + s·BA‖ per output feature, directly and by the identity that never forms W + s·BA
    linear_cross_entropy  an output head's loss, and its gradient
    dropout               the mask: Philox4x32-10
    adalora_importance, rank_schedule, orthogonality       how AdaLoRA spends its rank budget
    peft_order            the four methods again in PEFT's order of operations and casts: the "eager" of the ratio rule
    ratio_rule            how wrong a result may be

Each forward `f` has its gradient `f_grad`, which takes the gradient of the output and then f's arguments.
Shapes: x [..., K] in, Y [..., N] out, W [N, K], A [r, K], B [N, r], E [r, 1], magnitude [N], bias [N]; r is the rank.
"""

from . import peft_order
from .adalora import AdaLoraGrads, adalora_linear, adalora_linear_grad
from .adalora_importance import Importance, importance_update, triplet_scores
from .dora import DoraGrads, dora_linear, dora_linear_grad
from .dropout import dropout_mask, philox4x32, philox_words
from .linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_grad
from .lora import LoraGrads, grouped_lora_linear, lora_linear, lora_linear_grad
from .low_rank_linear import LowRankGrads, low_rank_linear, low_rank_linear_grad
from .nf4_linear import LinearGrads, nf4_linear, nf4_linear_grad
from .orthogonality import orthogonality_penalty
from .rank_schedule import Budget, budget, keep_mask
from .row_norm import CANCELLATION, NORM_FLOOR, row_norm, row_norm_factored
from .vera import VeraGrads, vera_linear, vera_linear_grad

__all__ = [
    "CANCELLATION",
    "NORM_FLOOR",
    "AdaLoraGrads",
    "Budget",
    "DoraGrads",
    "Importance",
    "LinearGrads",
    "LoraGrads",
    "LowRankGrads",
    "VeraGrads",
    "adalora_linear",
    "adalora_linear_grad",
    "budget",
    "dora_linear",
    "dora_linear_grad",
    "dropout_mask",
    "grouped_lora_linear",
    "importance_update",
    "keep_mask",
    "linear_cross_entropy",
    "linear_cross_entropy_grad",
    "lora_linear",
    "lora_linear_grad",
    "low_rank_linear",
    "low_rank_linear_grad",
    "nf4_linear",
    "nf4_linear_grad",
    "orthogonality_penalty",
    "peft_order",
    "philox4x32",
    "philox_words",
    "row_norm",
    "row_norm_factored",
    "triplet_scores",
    "vera_linear",
    "vera_linear_grad",
]
