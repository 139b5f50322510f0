"""4-bit codes and their scales in plain PyTorch, bit-identical to bitsandbytes 0.50 on the CPU.

    w = level[code] · absmax of its block, formed in fp32 and rounded once to the dtype asked for
    absmax = nested_level[absmax_code] · nested_absmax + offset, rounded after the product and after the sum

Codes are uint8 [ceil(NK/2), 1], the even element in the high nibble; absmax fp32 [ceil(NK / block)]. Weights are worked
on in pieces of `_CHUNK` elements, so nothing of their size is held beside input and output.
"""

from __future__ import annotations

import torch

from ...kernels.formats import FORMATS
from ...ops.by_storage import NESTED_BLOCK_SIZE, Layout
from ...ops.quantize_4bit import ABSMAX_STEPS, SMALLEST_ABSMAX, level_bounds

Tensor = torch.Tensor

# A multiple of every block size.
_CHUNK = 1 << 20


def dequantize_4bit(codes: Tensor, scales: list[Tensor], layout: list[int], dtype: torch.dtype) -> Tensor:
    """W [N, K] in `dtype`; fp64 is the fp32 product, widened."""
    shape = Layout(*layout)
    count = shape.out_features * shape.in_features
    packed = codes.reshape(-1)
    block_scales = absmax(scales, layout)
    pairs = _pair_levels(shape.quant_type, codes.device)
    weight = codes.new_empty(count, dtype=dtype)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        values = pairs[packed[start // 2 : (stop + 1) // 2].int()].view(-1)[: stop - start]
        first = start // shape.block_size
        weight[start:stop] = _scale_blocks_(values, block_scales[first:], shape.block_size)
    return weight.view(shape.out_features, shape.in_features)


def absmax(scales: list[Tensor], layout: list[int]) -> Tensor:
    """The fp32 block scales [ceil(NK / block)] of a 4-bit weight, double quantisation undone."""
    shape = Layout(*layout)
    if not shape.nested_block_size:
        return scales[0].reshape(-1)
    absmax_codes, nested_absmax, nested_levels, offset = scales
    values = nested_levels[absmax_codes.reshape(-1).int()]
    return _scale_blocks_(values, nested_absmax.reshape(-1), shape.nested_block_size).add_(offset.reshape(()))


def quantize_4bit(weight: Tensor, block_size: int, quant_type: str) -> tuple[Tensor, Tensor]:
    """Codes uint8 [ceil(NK/2), 1] and absmax fp32 [ceil(NK / block)] of W [N, K]; a missing last nibble is 0's code."""
    flat = weight.detach().reshape(-1)
    count = flat.numel()
    bounds, order = (tensor.to(weight.device) for tensor in level_bounds(quant_type))
    codes = flat.new_empty(((count + 1) // 2, 1), dtype=torch.uint8)
    block_scales = flat.new_empty(-(-count // block_size), dtype=torch.float32)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        scaled, scale = _normalized(flat[start:stop].float(), block_size)
        if scaled.numel() % 2:
            scaled = torch.nn.functional.pad(scaled, (0, 1))
        found = order[torch.bucketize(scaled, bounds, out_int32=True)]
        codes[start // 2 : (stop + 1) // 2, 0] = (found[::2] << 4) | found[1::2]
        first = start // block_size
        block_scales[first : first + scale.numel()] = scale
    return codes, block_scales


def quantize_absmax(absmax: Tensor, nested_levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [blocks], nested_absmax fp32 [ceil(blocks / 256)] and offset fp32 [] of absmax fp32 [blocks]."""
    offset = absmax.mean()
    blocks = torch.nn.functional.pad(absmax - offset, (0, -absmax.numel() % NESTED_BLOCK_SIZE)).view(
        -1, NESTED_BLOCK_SIZE
    )
    nested_absmax = blocks.abs().amax(1)
    scaled = (blocks * nested_absmax.reciprocal().unsqueeze(1)).clamp_(-1, 1)
    # 0 · inf of a block of zeros: its codes are all 0, as in bitsandbytes
    scaled = scaled.nan_to_num_(nan=-1.0)
    step = ((scaled + 1) * 0.5 * ABSMAX_STEPS + 0.5).int()
    rounded = step.float() * 2 / ABSMAX_STEPS - 1
    bounds = (nested_levels[:-1] + nested_levels[1:]) / 2
    codes = torch.bucketize(rounded, bounds, out_int32=True).to(torch.uint8)
    return codes.view(-1)[: absmax.numel()].clone(), nested_absmax, offset


def _pair_levels(quant_type: int, device: torch.device) -> Tensor:
    """fp32 [256, 2]: the levels of the two codes in a byte."""
    levels = torch.tensor(FORMATS[quant_type].levels, dtype=torch.float32, device=device)
    return torch.cartesian_prod(levels, levels)


def _scale_blocks_(values: Tensor, scale: Tensor, block_size: int) -> Tensor:
    """values [n] times their block's scale, in place."""
    full = values.numel() // block_size
    tail = full * block_size
    values[:tail].view(full, block_size).mul_(scale[:full].unsqueeze(1))
    if tail < values.numel():
        values[tail:].mul_(scale[full])
    return values


def _normalized(values: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """fp32 values [n] over their block's absmax, and those absmax [ceil(n / block)].

    Whole blocks are multiplied by the reciprocal, a shorter last one is divided: they round differently.
    """
    tail = values.numel() // block_size * block_size
    blocks = values[:tail].view(-1, block_size)
    scale = blocks.abs().amax(1)
    scaled = (blocks * scale.clamp(min=SMALLEST_ABSMAX).reciprocal().unsqueeze(1)).view(-1)
    if tail == values.numel():
        return scaled, scale
    last = values[tail:].abs().max().clamp(min=SMALLEST_ABSMAX)
    return torch.cat([scaled, values[tail:] / last]), torch.cat([scale, last.unsqueeze(0)])
