"""Every op in plain PyTorch: the announced fallback, and the yardstick of the tests."""

from .adalora_importance import adalora_importance, adalora_scores
from .adalora_penalty import adalora_penalty, adalora_penalty_grad
from .four_bit import dequantize_4bit, quantize_4bit, quantize_absmax
from .linear_cross_entropy import linear_cross_entropy
from .products import dropout, lora_factors_grad, lora_linear, lora_linear_grad, lora_linear_group, lora_project
from .row_norm import row_norm, squared_row_norm

__all__ = [
    "adalora_importance",
    "adalora_penalty",
    "adalora_penalty_grad",
    "adalora_scores",
    "dequantize_4bit",
    "dropout",
    "linear_cross_entropy",
    "lora_factors_grad",
    "lora_linear",
    "lora_linear_grad",
    "lora_linear_group",
    "lora_project",
    "quantize_4bit",
    "quantize_absmax",
    "row_norm",
    "squared_row_norm",
]
