"""Every op for CPU tensors: 4-bit weights by kernels of our own, dense ones by ours or the platform's library."""

# torch's products, and its means, are all there is to these
from ..eager import adalora_penalty, adalora_penalty_grad, adalora_scores
from .adalora_importance import adalora_importance
from .dequantize_4bit import dequantize_4bit
from .dropout import dropout
from .linear_cross_entropy import linear_cross_entropy
from .lora_factors_grad import lora_factors_grad
from .lora_linear import lora_linear
from .lora_linear_grad import lora_linear_grad
from .lora_linear_group import lora_linear_group
from .lora_project import lora_project
from .quantize_4bit import quantize_4bit, quantize_absmax
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
