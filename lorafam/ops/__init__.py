"""The contract: every op's schema, checks and fake tensor. Importing this declares `torch.ops.lorafam.*`."""

from . import (
    adalora_importance,
    adalora_penalty,
    dequantize_4bit,
    dropout,
    linear_cross_entropy,
    lora_factors_grad,
    lora_linear,
    lora_linear_grad,
    lora_linear_group,
    lora_project,
    quantize_4bit,
    row_norm,
)

__all__ = [
    "adalora_importance",
    "adalora_penalty",
    "dequantize_4bit",
    "dropout",
    "linear_cross_entropy",
    "lora_factors_grad",
    "lora_linear",
    "lora_linear_grad",
    "lora_linear_group",
    "lora_project",
    "quantize_4bit",
    "row_norm",
]
