"""Every op in Triton: GPU tensors, and CPU tensors under `LORAFAM_BACKEND=simulate` or `interpret` (`launch`)."""

from .launch import INTERPRETING as INTERPRETING  # noqa: I001  sets what Triton reads when a kernel is decorated

from .. import selection
from ..eager import linear_cross_entropy
from .adalora import adalora_importance, adalora_scores
from .adalora_penalty import adalora_penalty, adalora_penalty_grad
from .dropout import dropout
from .four_bit import dequantize_4bit, quantize_4bit, quantize_absmax
from .lora_factors_grad import lora_factors_grad
from .lora_linear import lora_linear
from .lora_linear_grad import lora_linear_grad
from .lora_linear_group import lora_linear_group
from .lora_project import lora_project
from .prepared import forget, prepared
from .row_norm import row_norm, squared_row_norm

__all__ = [
    "adalora_importance",
    "adalora_penalty",
    "adalora_penalty_grad",
    "adalora_scores",
    "dequantize_4bit",
    "dropout",
    "forget",
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

selection.prepare_by(prepared)
