"""A 4-bit weight W [N, K] a few rows at a time in fp32: decoded into a buffer that stays in cache, then over it again.

Whole rows, or planes of some columns each, for a library that wants every factor contiguous. W in float never exists
whole. One buffer per thread, kept between calls and bounded by `PANEL_BYTES`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch

from ...ops.by_storage import Layout
from .decode import as_arrays, decode_planes, decode_run
from .threads import parallel_ranges

PANEL_BYTES = 1 << 22
# a plane is as high as its panel, and a low one is multiplied more slowly
PLANES_BYTES = 1 << 23
# weights decoded in about the time another thread takes to start
_GRAIN = 1 << 19
_local = threading.local()


def panels(
    data: torch.Tensor, scales: list[torch.Tensor], layout: list[int], dtype: torch.dtype = torch.float32
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(first row, end row, those rows [rows, K] in `dtype`); the tensor is overwritten by the next panel."""
    columns = layout[1]
    for first, end, parts in plane_panels(data, scales, layout, max(1, columns), PANEL_BYTES):
        yield first, end, parts[0] if dtype == torch.float32 else parts[0].to(dtype)


def plane_panels(
    data: torch.Tensor, scales: list[torch.Tensor], layout: list[int], terms: int, panel_bytes: int
) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
    """(first row, end row, those rows' columns `terms` at a time: contiguous fp32 [rows, terms], the last narrower).

    The tensors are overwritten by the next panel.
    """
    shape = Layout(*layout)
    columns = shape.in_features
    if columns == 0 or shape.out_features == 0:
        return
    # as few panels as fit, of one height: a low last one is multiplied more slowly
    count = -(-shape.out_features // max(1, panel_bytes // (4 * columns)))
    height = -(-shape.out_features // count)
    weight = as_arrays(data, scales, layout)
    buffer = _buffer(height * columns)
    array = buffer.numpy()
    grain_rows = max(1, _GRAIN // columns)
    for first in range(0, shape.out_features, height):
        end = min(first + height, shape.out_features)
        rows = end - first

        def decode(start: int, stop: int, first: int = first, end: int = end) -> None:
            if terms < columns:
                decode_planes(weight, columns, terms, first, end, first + start, first + stop, array)
            else:
                run = array[start * columns : stop * columns]
                decode_run(weight, (first + start) * columns, (first + stop) * columns, run)

        parallel_ranges(decode, rows, grain_rows)
        planes = buffer[: rows * columns].split(rows * terms)
        yield first, end, [plane.view(rows, -1) for plane in planes]


def _buffer(size: int) -> torch.Tensor:
    """fp32 [at least size], this thread's own; nested use of panels within a thread isn't possible."""
    buffer = getattr(_local, "buffer", None)
    if buffer is None or buffer.numel() < size:
        buffer = _local.buffer = torch.empty(size, dtype=torch.float32)
    return buffer
