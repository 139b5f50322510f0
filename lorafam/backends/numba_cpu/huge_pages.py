"""Large results in huge pages. Memory that the C library has just got from the system is mapped page by page as it is
first written, and zeroed: 4 KiB at a time that takes three times as long as writing the result itself.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

import torch

Tensor = torch.Tensor
# bytes: what glibc always gets anew from the system, and gives back when it is freed
_LEAST = 32 << 20
_PAGE = 2 << 20
_MADV_HUGEPAGE = 14


def new_matrix(like: Tensor, rows: int, columns: int) -> Tensor:
    """`like.new_empty(rows, columns)`, in huge pages where it is large and the system (Linux) has them."""
    matrix = like.new_empty(rows, columns)
    size = rows * columns * matrix.itemsize
    if size >= _LEAST:
        first = -(-matrix.data_ptr() // _PAGE) * _PAGE
        end = (matrix.data_ptr() + size) // _PAGE * _PAGE
        # a hint: a system that refuses it does what it did without
        _advise()(first, end - first, _MADV_HUGEPAGE)
    return matrix


@functools.cache
def _advise() -> Callable[[int, int, int], object]:
    if sys.platform != "linux":
        return lambda *_: None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise
