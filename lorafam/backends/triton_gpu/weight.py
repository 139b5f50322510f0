"""A base weight as the keyword arguments that every kernel over W takes."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ...kernels.formats import FORMATS
from ...kernels.launch_table import DENSE, ELEMENTS, NVIDIA, PACKED, machine_of
from ...ops.by_storage import Layout, Storage
from .memory import kept_memory

Tensor = torch.Tensor

_SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def weight_arguments(weight: Storage, architecture: str, packed_for: torch.dtype | None = None) -> dict[str, Any]:
    """Pointers, strides and constexprs of W.

    `packed_for` is the dtype (bf16 or fp16) of an operand that rounded levels may be multiplied with: taken up where
    every row has whole blocks.
    """
    data, scales, layout = weight
    if weight.is_dense:
        return {
            "w_ptr": data,
            "levels_ptr": None,
            "absmax_ptr": None,
            "nested_absmax_ptr": None,
            "nested_levels_ptr": None,
            "offset_ptr": None,
            "stride_wn": data.stride(0),
            "stride_wk": data.stride(1),
            "BLOCK_SIZE": 0,
            "PACKED": False,
            "INVERSE_GAIN": 1.0,
        }
    shape = Layout(*layout)
    packed = packed_for in (torch.bfloat16, torch.float16) and shape.in_features % shape.block_size == 0
    gain, levels = 1.0, _levels(shape.quant_type, data.device)
    if packed and packed_for is not None:
        gain = shape.format.gain(_SHORT[packed_for])
        levels = _table(shape.quant_type, packed_for, machine_of(architecture) == NVIDIA, data.device)
    nested = bool(shape.nested_block_size)
    absmax, nested_absmax, nested_levels, offset = (
        (scale.reshape(-1).contiguous() for scale in scales) if nested else (scales[0].reshape(-1), None, None, None)
    )
    return {
        "w_ptr": data.reshape(-1),
        "levels_ptr": levels,
        "absmax_ptr": absmax,
        "nested_absmax_ptr": nested_absmax,
        "nested_levels_ptr": nested_levels,
        "offset_ptr": offset,
        "stride_wn": 0,
        "stride_wk": 0,
        "BLOCK_SIZE": shape.block_size,
        "PACKED": packed,
        "INVERSE_GAIN": 1.0 / gain,
    }


def how_read(weight: dict[str, Any]) -> str:
    """How a product over W's rows reads the W of these arguments, as the launch table calls it."""
    if weight["PACKED"]:
        return PACKED
    return ELEMENTS if weight["BLOCK_SIZE"] else DENSE


def how_columns_are_read(weight: dict[str, Any], in_features: int) -> str:
    """The same for a kernel that takes columns of one block at a time, exactly decoded."""
    if not weight["BLOCK_SIZE"]:
        return DENSE
    return ELEMENTS if in_features % weight["BLOCK_SIZE"] else PACKED


@functools.cache
def _levels(quant_type: int, device: torch.device) -> Tensor:
    """The sixteen levels, fp32 [16]."""
    return kept_memory(device, lambda: torch.tensor(FORMATS[quant_type].levels, dtype=torch.float32, device=device))


@functools.cache
def _table(quant_type: int, dtype: torch.dtype, pairs: bool, device: torch.device) -> Tensor:
    """What `load_table` reads: gain · level rounded to `dtype`, as fp32 [16], or as the PTX decoder's int32 [256]: the
    two levels of every byte, the high nibble's in the low half.
    """

    def table() -> Tensor:
        row = FORMATS[quant_type]
        levels = torch.tensor(row.levels, dtype=torch.float64, device="cpu") * row.gain(_SHORT[dtype])
        rounded = levels.to(dtype)
        if not pairs:
            return rounded.float().to(device)
        byte = torch.arange(256, device="cpu")
        return torch.stack([rounded[byte >> 4], rounded[byte & 15]], dim=1).view(torch.int32).view(-1).to(device)

    return kept_memory(device, table)
