"""What is tuned: an op at a shape, a number of tokens, a rank, a dtype and a storage of W."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# names as in the launch table
OPS = (
    "lora_linear",
    "lora_linear_grad",
    "nf4_dequantize",
    "lora_project",
    "lora_factors_grad",
    "lora_grad_pass",
    "row_norm",
    "dense_linear",
    "lora_linear_path",
    "lora_linear_grad_path",
)
# how a product over a 4-bit weight runs, after its kernels
PATHS = {"lora_linear_path": "lora_linear", "lora_linear_grad_path": "lora_linear_grad"}
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))
TOKENS = (1, 4, 16, 64, 128, 512, 2048)
# of a 4-bit weight
BLOCK_SIZE = 64
DTYPES = ("bfloat16", "float16", "float32")
STORAGES = ("nf4", "dense")

# fewer are bound by reading codes, so the staged path isn't tried
_STAGED_FROM = 64
_WITHOUT_TOKENS = ("nf4_dequantize", "row_norm")
_WITHOUT_WEIGHT = ("lora_project", "lora_factors_grad", "lora_grad_pass")


class Point(NamedTuple):
    """One measurement's subject; a size that its kernel doesn't depend on is 0, a storage "none"."""

    op: str
    N: int
    K: int
    tokens: int
    rank: int
    dtype: str
    storage: str

    def __str__(self) -> str:
        sides = f"{self.N} x {self.K}" if self.N else f"K {self.K}"
        parts = [self.op, sides, f"{self.tokens} tokens" if self.tokens else "", self.dtype]
        return ", ".join([*(part for part in parts if part), *([] if self.storage == "none" else [self.storage])])


def points(
    ops: Sequence[str] = OPS,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    tokens: Sequence[int] = TOKENS,
    rank: int = 16,
    dtype: str = "bfloat16",
    storages: Sequence[str] = ("nf4",),
) -> list[Point]:
    """Every combination once, shape by shape, so that a short time gives whole shapes."""
    return list(dict.fromkeys(_combinations(ops, shapes, tokens, rank, dtype, storages)))


def _combinations(
    ops: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    tokens: Sequence[int],
    rank: int,
    dtype: str,
    storages: Sequence[str],
) -> Iterator[Point]:
    for N, K in shapes:
        for op in ops:
            for storage in ("none",) if op in _WITHOUT_WEIGHT else storages:
                staged = op == "dense_linear" or op in PATHS
                if staged and (dtype == "float32" or math.gcd(N, K) % BLOCK_SIZE):
                    continue
                if storage != "nf4" and (staged or op == "nf4_dequantize"):
                    continue
                for count in (0,) if op in _WITHOUT_TOKENS else tokens:
                    if staged and count < _STAGED_FROM:
                        continue
                    # these go over one side of W at a time
                    for n, k in ((0, K), (0, N)) if op in _WITHOUT_WEIGHT else ((N, K),):
                        yield Point(op, n, k, count, rank, dtype, storage)
