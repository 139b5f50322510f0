"""A 4-bit weight W [N, K] a few rows at a time: decoded into a buffer that stays in cache, then over it again.

W in float never exists whole. One buffer per thread, kept between calls and bounded by `PANEL_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...ops.by_storage import Layout, Storage
from . import parallel
from .compiled import compiled
from .four_bit import Weight, decode_in_order, describe, own, weight_of
from .parallel import next_part
from .processor import processor

PANEL_BYTES = 1 << 22
# weights that a thread decodes at a time
_PART = 1 << 15


@compiled
def _decode(lanes: int, sources: int):
    def kernel(data: int) -> None:
        weight = weight_of(data)
        start, stop, out = own(data, 0), own(data, 1), own(data, 2)
        part = next_part(data)
        while part >= 0 and sources:
            first = start + part * _PART
            decode_in_order(weight, first, min(first + _PART, stop), out + 4 * (first - start), lanes)
            part = next_part(data)

    return kernel


def decode(weight: Weight, start: int, stop: int, out: torch.Tensor) -> None:
    """Elements start … stop of the flattened weight into out, contiguous fp32 [at least stop - start]."""
    parallel.run(_decode(processor().lanes), (*weight, start, stop, out.data_ptr()), -(-(stop - start) // _PART))


def panels(weight: Storage, dtype: torch.dtype = torch.float32) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(first row, end row, those rows [rows, K] in `dtype`); the tensor is overwritten by the next panel."""
    shape = Layout(*weight.layout)
    columns = shape.in_features
    if columns == 0 or shape.out_features == 0:
        return
    # as few panels as fit, of one height: a low last one is multiplied more slowly
    count = -(-shape.out_features // max(1, PANEL_BYTES // (4 * columns)))
    height = -(-shape.out_features // count)
    codes = describe(weight)
    # fp32; nested use of panels within a thread isn't possible
    buffer = parallel.kept("panel", 4 * height * columns).view(torch.float32)
    for first in range(0, shape.out_features, height):
        end = min(first + height, shape.out_features)
        decode(codes, first * columns, end * columns, buffer)
        rows = buffer[: (end - first) * columns].view(-1, columns)
        yield first, end, rows if dtype == torch.float32 else rows.to(dtype)
