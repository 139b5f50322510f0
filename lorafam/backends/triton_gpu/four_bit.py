"""Codes and scales of a weight, and back: bit-identical to bitsandbytes."""

from __future__ import annotations

import functools

import torch

from ...kernels.absmax_quantize import absmax_quantize
from ...kernels.launch_table import launch_config
from ...kernels.nf4_dequantize import nf4_dequantize
from ...kernels.nf4_quantize import nf4_quantize
from ...ops.by_storage import NESTED_BLOCK_SIZE, Storage
from ...ops.quantize_4bit import ABSMAX_STEPS, SMALLEST_ABSMAX, level_bounds
from .launch import architecture, launch
from .memory import kept_memory
from .operands import dtype_name
from .weight import weight_arguments

Tensor = torch.Tensor


@torch.no_grad()
def dequantize_4bit(codes: Tensor, scales: list[Tensor], layout: list[int], dtype: torch.dtype) -> Tensor:
    """W [N, K] in `dtype`; fp64 is the fp32 product, widened."""
    decoded = codes.new_empty((layout[0], layout[1]), dtype=torch.float32 if dtype == torch.float64 else dtype)
    if decoded.numel():
        arch = architecture(codes.device)
        launch(
            codes.device,
            ("decoded_ptr",),
            nf4_dequantize,
            weight=weight_arguments(Storage(codes, scales, layout), arch),
            c=None,
            decoded=decoded,
            N=layout[0],
            K=layout[1],
            config=launch_config("nf4_dequantize", arch, dtype_name(decoded), N=layout[0], K=layout[1]),
        )
    return decoded.to(dtype)


@torch.no_grad()
def quantize_4bit(weight: Tensor, block_size: int, quant_type: str) -> tuple[Tensor, Tensor]:
    """Codes uint8 [ceil(NK/2), 1] and absmax fp32 [ceil(NK / block)]; a missing last nibble is 0's code."""
    flat = weight.detach().reshape(-1)
    count = flat.numel()
    codes = flat.new_empty(((count + 1) // 2, 1), dtype=torch.uint8)
    absmax = flat.new_empty(-(-count // block_size), dtype=torch.float32)
    if count:
        bounds, order = _bounds(quant_type, flat.device)
        launch(
            flat.device,
            ("codes_ptr", "absmax_ptr"),
            nf4_quantize,
            w=flat,
            bounds=bounds,
            order=order,
            codes=codes,
            absmax=absmax,
            count=count,
            smallest=SMALLEST_ABSMAX,
            block_size=block_size,
            config=launch_config("nf4_quantize", architecture(flat.device), dtype_name(flat)),
        )
    return codes, absmax


@torch.no_grad()
def quantize_absmax(absmax: Tensor, nested_levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [blocks], nested_absmax fp32 [ceil(blocks / 256)] and offset fp32 [] of absmax fp32 [blocks]."""
    offset = absmax.mean()
    codes = absmax.new_empty(absmax.numel(), dtype=torch.uint8)
    nested_absmax = absmax.new_empty(-(-absmax.numel() // NESTED_BLOCK_SIZE))
    if codes.numel():
        launch(
            absmax.device,
            ("codes_ptr", "nested_absmax_ptr"),
            absmax_quantize,
            centred=absmax - offset,
            bounds=(nested_levels[:-1] + nested_levels[1:]) / 2,
            codes=codes,
            nested_absmax=nested_absmax,
            B=absmax.numel(),
            steps=ABSMAX_STEPS,
            config=launch_config("absmax_quantize", architecture(absmax.device), "float32"),
        )
    return codes, nested_absmax, offset


@functools.cache
def _bounds(quant_type: str, device: torch.device) -> tuple[Tensor, Tensor]:
    bounds, order = level_bounds(quant_type)
    return kept_memory(device, lambda: (bounds.to(device), order.to(device, torch.int32)))
