"""A low-rank factor [rows, r] times its scales, as the kernels read it: in its own order, or ranks by registers."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numba import njit

from ...ops.adapted import Scale
from . import parallel
from .compiled import compiled
from .memory import load_float, store_float
from .parallel import address, argument, next_part
from .token_order import write_scaled

Tensor = torch.Tensor
_ROWS = 128
# one value for all ranks: rows of whole registers, whatever the rank
_LONG = 64


@njit
def write_row(
    source: int, out: int, group_bytes: int, rank: int, filled: int, factor: float, scale: int, step: int, lanes: int
) -> None:
    """out = row ∘ scale · factor, ranks of group g from out + g · group_bytes on; zeros up to `filled` ranks."""
    whole = rank // lanes * lanes
    for j in range(0, whole, lanes):
        write_scaled(source + 4 * j, np.float32(1), out + j // lanes * group_bytes, 0, scale + step * j, step, lanes)
        if factor != np.float32(1):
            write_scaled(out + j // lanes * group_bytes, factor, out + j // lanes * group_bytes, 0, 0, 0, lanes)
    for j in range(whole, filled):
        value = np.float32(0)
        if j < rank:
            value = load_float(source + 4 * j)
            if scale:
                value *= load_float(scale + step * j)
            value *= factor
        store_float(out + j // lanes * group_bytes + j % lanes * 4, value)


@compiled
def _lines(lanes: int, sources: int):
    def kernel(data: int) -> None:
        source, rows, rank, filled = argument(data, 0), argument(data, 1), argument(data, 2), argument(data, 3)
        out, row_bytes, group_bytes = argument(data, 4), argument(data, 5), argument(data, 6)
        scale, step, factors = argument(data, 7), argument(data, 8), argument(data, 9)
        part = next_part(data)
        while part >= 0 and sources:
            for row in range(part * _ROWS, min((part + 1) * _ROWS, rows)):
                factor = load_float(factors + 4 * row) if factors else np.float32(1)
                at, to = source + 4 * row * rank, out + row * row_bytes
                write_row(at, to, group_bytes, rank, filled, factor, scale, step, lanes)
            part = next_part(data)

    return kernel


@functools.lru_cache(maxsize=64)
def _number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float32)


def scale_at(scale: Scale | None) -> tuple[int, int]:
    """Where a scale lies, and the bytes from one rank's to the next; (0, 0) for 1."""
    if isinstance(scale, Tensor) and scale.ndim:
        return scale.data_ptr(), 4
    number = 1.0 if scale is None else float(scale)
    return (0, 0) if number == 1 else (parallel.hold(_number(number)).data_ptr(), 0)


def by_registers(
    factor: Tensor,
    lanes: int,
    name: str,
    scale: Scale | None = None,
    c: Tensor | None = None,
    meets: bool = True,
) -> int:
    """The address of c ∘ (factor ∘ scale) as [r / lanes][rows][lanes], the last group filled up with zeros; kept until
    the next of that name.
    """
    rows, rank = factor.shape
    where, step = scale_at(scale)
    if rank == lanes and not where and c is None:
        return factor.data_ptr()
    groups = -(-rank // lanes)
    out = parallel.kept(name, 4 * groups * rows * lanes).data_ptr()
    arguments = (factor.data_ptr(), rows, rank, groups * lanes, out, 4 * lanes, 4 * rows * lanes)
    parallel.run(_lines(lanes), (*arguments, where, step, address(c)), -(-rows // _ROWS), meets=meets)
    return out


def scaled(factor: Tensor, scale: Scale | None, lanes: int) -> Tensor:
    """B̂ = B ∘ scale [N, r]; B in fp32, contiguous. Kept until the next."""
    where, step = scale_at(scale)
    if not where:
        return factor
    rows, rank = factor.shape
    result = parallel.kept_matrix("B scaled", rows, rank)
    if step == 0 and rows * rank % _LONG == 0:
        rows, rank = rows * rank // _LONG, _LONG
    arguments = (factor.data_ptr(), rows, rank, rank, result.data_ptr(), 4 * rank, 4 * lanes, where, step, 0)
    parallel.run(_lines(lanes), arguments, -(-rows // _ROWS), meets=False)
    return result
