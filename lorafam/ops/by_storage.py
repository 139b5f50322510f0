"""The one place that asks "dense or 4-bit?": how a base weight W [N, K] is flattened into op arguments.

    dense           data = W [N, K]                    scales = []                     layout = []
    4-bit           data = codes uint8 [ceil(NK/2)]    scales = [absmax]               layout = [N, K, block, type, 0]
    4-bit, double   the same                           scales = [absmax_codes, nested_absmax, nested_levels, offset]
                                                       layout = [N, K, block, type, nested block]

`absmax` is fp32 [ceil(NK / block)]; under double quantisation it is uint8 codes of the same length into `nested_levels`
(fp32 [256]), times `nested_absmax` (fp32 [ceil(blocks / nested block)]), plus `offset` (fp32 scalar tensor).
Blocks run along the flattened row-major weight; the even element of a pair is the high nibble, as in bitsandbytes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..kernels.formats import BLOCK_SIZES, FORMATS, QUANT_TYPES, Format

NESTED_BLOCK_SIZE = 256
ABSMAX = ("absmax",)
NESTED_ABSMAX = ("absmax_codes", "nested_absmax", "nested_levels", "offset")
FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Storage(NamedTuple):
    """A weight as op arguments: `torch.ops.lorafam.lora_linear(x, *storage, ...)`."""

    data: torch.Tensor
    scales: list[torch.Tensor]
    layout: list[int]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        sizes = self.layout or self.data.shape
        return sizes[0], sizes[1]

    @property
    def is_dense(self) -> bool:
        return not self.layout


class Layout(NamedTuple):
    """The integers of a 4-bit layout, by name. `nested_block_size` 0 means no double quantisation."""

    out_features: int
    in_features: int
    block_size: int
    quant_type: int
    nested_block_size: int

    @property
    def format(self) -> Format:
        return FORMATS[self.quant_type]

    @property
    def blocks(self) -> int:
        return -(-self.out_features * self.in_features // self.block_size)


def is_dense(layout: Sequence[int]) -> bool:
    """Whether `layout` describes a dense weight."""
    return len(layout) == 0


def dense_storage(weight: torch.Tensor) -> Storage:
    """A dense weight [N, K] as op arguments."""
    return Storage(weight, [], [])


def group_storages(
    data: Sequence[torch.Tensor], scales: Sequence[torch.Tensor], layout: Sequence[int]
) -> list[Storage]:
    """The weights of a group, all dense or all 4-bit, whose arguments stand one after the other (`joined`).

    Raises ValueError where their numbers don't fit.
    """
    storages, at = [], 0
    each = len(layout) // len(data) if data else 0
    for index, one in enumerate(data):
        own = list(layout[index * each : (index + 1) * each])
        count = len(scale_names(own)) if each in (0, 5) else -1
        storages.append(Storage(one, list(scales[at : at + count]), own))
        at += count
    if each * len(data) != len(layout) or at != len(scales):
        raise ValueError(f"layout, scales: {len(layout)} integers and {len(scales)} scales aren't {len(data)} weights'")
    return storages


def joined(storages: Sequence[Storage]) -> tuple[list[torch.Tensor], list[torch.Tensor], list[int]]:
    """Weights of one kind as the arguments of a group."""
    return (
        [storage.data for storage in storages],
        [scale for storage in storages for scale in storage.scales],
        [size for storage in storages for size in storage.layout],
    )


def weight_shape(data: torch.Tensor, layout: Sequence[int]) -> tuple[int, int]:
    """(N, K) of a flattened weight."""
    if is_dense(layout):
        return data.shape[0], data.shape[1]
    return layout[0], layout[1]


def scale_names(layout: Sequence[int]) -> tuple[str, ...]:
    """The names of a weight's scales, in their order."""
    return () if is_dense(layout) else NESTED_ABSMAX if layout[4] else ABSMAX


def check_storage(data: torch.Tensor, scales: Sequence[torch.Tensor], layout: Sequence[int]) -> None:
    """Raises ValueError or TypeError when the three arguments don't describe one weight."""
    if is_dense(layout):
        if data.ndim != 2:
            raise ValueError(f"weight: expected a matrix [N, K], got shape {list(data.shape)}")
        if data.dtype not in FLOAT_DTYPES:
            raise TypeError(f"weight: expected a floating-point matrix, got {data.dtype}")
        return
    packed, expected = _expected(tuple(layout))
    if data.dtype != torch.uint8 or data.numel() != packed:
        shape = Layout(*layout)
        raise ValueError(
            f"codes: expected {packed} bytes (uint8) for [{shape.out_features}, {shape.in_features}], "
            f"got {data.numel()} of {data.dtype}"
        )
    if not data.is_contiguous():
        raise ValueError(f"codes: expected contiguous bytes, got strides {list(data.stride())}")
    if len(scales) != len(expected):
        raise ValueError(f"scales: expected {[name for name, _, _ in expected]}, got {len(scales)} tensors")
    for tensor, (name, dtype, size) in zip(scales, expected, strict=True):
        if tensor.dtype != dtype or tensor.numel() != size:
            raise ValueError(f"{name}: expected {size} values of {dtype}, got {tensor.numel()} of {tensor.dtype}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: expected contiguous values, got strides {list(tensor.stride())}")
        if tensor.device != data.device:
            raise ValueError(f"{name}: expected device {data.device} (that of the codes), got {tensor.device}")


@functools.lru_cache(maxsize=1024)
def _expected(layout: tuple[int, ...]) -> tuple[int, list[tuple[str, torch.dtype, int]]]:
    """The bytes of codes, and name, dtype and size of each scale of a 4-bit layout, which is checked."""
    if len(layout) != 5:
        raise ValueError(f"layout: expected five integers (N, K, block, type, nested block), got {list(layout)}")
    shape = Layout(*layout)
    if shape.block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size: expected one of {BLOCK_SIZES}, got {shape.block_size}")
    if shape.quant_type not in range(len(QUANT_TYPES)):
        raise ValueError(f"quant_type: expected an index into {QUANT_TYPES}, got {shape.quant_type}")
    if shape.nested_block_size not in (0, NESTED_BLOCK_SIZE):
        raise ValueError(f"nested_block_size: expected 0 or {NESTED_BLOCK_SIZE}, got {shape.nested_block_size}")
    if shape.nested_block_size:
        nested_blocks = -(-shape.blocks // shape.nested_block_size)
        kinds = [(torch.uint8, shape.blocks), (torch.float32, nested_blocks), (torch.float32, 256), (torch.float32, 1)]
    else:
        kinds = [(torch.float32, shape.blocks)]
    packed = -(-shape.out_features * shape.in_features // 2)
    return packed, [(name, *kind) for name, kind in zip(scale_names(layout), kinds, strict=True)]
