"""The calls by which a point is measured and checked."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..backends import eager
from ..kernels.launch_rows import Row
from ..kernels.paths import FUSED, STAGED, TRITON
from ..ops.by_storage import NESTED_BLOCK_SIZE
from .points import BLOCK_SIZE, PATHS, Point

Tensor = torch.Tensor
Arguments = tuple[Any, ...]

# the second check's shape: N with a tail, K in whole blocks or not as the point's is, a rank in two tiles
N, K, K_TAIL, RANK = 72, 256, 200, 20
_OPS = {
    "nf4_dequantize": "dequantize_4bit",
    "lora_grad_pass": "lora_factors_grad",
    "dense_linear": "lora_linear",
    **PATHS,
}


class Workload(NamedTuple):
    """`op` is the name of the implementation; `arguments` are timed and checked, `odd` checked alone: tails, dropout,
    and every optional operand. `paths`: what sends the op to its kernel.
    """

    op: str
    kernel: str
    arguments: Arguments
    odd: Arguments
    paths: dict[str, list[Row]]


def workload(point: Point, device: torch.device) -> Workload:
    """Random but fixed values on `device`."""
    op = _OPS.get(point.op, point.op)
    whole = point.K % BLOCK_SIZE == 0
    small = point._replace(N=N, K=K if whole else K_TAIL, tokens=max(1, point.tokens - 1), rank=RANK)
    staged = {"path": STAGED, "product": TRITON}
    paths = {op: [staged if point.op == "dense_linear" else {"path": FUSED}]} if op in PATHS.values() else {}
    return Workload(op, point.op, _arguments(point, device, False), _arguments(small, device, True), paths)


def _arguments(point: Point, device: torch.device, everything: bool) -> Arguments:
    generator = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, point.dtype)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    # ops over one side of W take the same for the other
    n = point.N or point.K
    A, B_hat, P = random(point.rank, point.K), random(n, point.rank), random(point.tokens, point.rank)
    # inputs that aren't zero-mean, as after an activation
    x, grad_y = random(point.tokens, point.K, dtype=dtype) + 1, random(point.tokens, n, dtype=dtype)
    c, bias = (random(n).abs() + 0.5, random(n)) if everything else (None, None)
    dropout = (torch.tensor(7, device=device), 0.1) if everything else (None, 0.0)
    if point.op == "lora_project":
        return (x, A, *dropout)
    if point.op in ("lora_factors_grad", "lora_grad_pass"):
        return (grad_y, x, P, B_hat, c, grad_y + 1 if everything else None, bias, c, *dropout, everything)
    weight = _weight(random(n, point.K), dtype, point.storage)
    if point.op == "nf4_dequantize":
        return (*weight, dtype)
    if point.op == "row_norm":
        return (*weight, A, B_hat, None if everything else eager.squared_row_norm(*weight))
    if _OPS.get(point.op, point.op) == "lora_linear":
        return (x, *weight, P, B_hat, c, bias)
    return (grad_y, *weight, c, P, A, *dropout)


def _weight(dense: Tensor, dtype: torch.dtype, storage: str) -> tuple[Tensor, list[Tensor], list[int]]:
    if storage == "dense":
        return dense.to(dtype), [], []
    codes, absmax = eager.quantize_4bit(dense, BLOCK_SIZE, "nf4")
    levels = torch.linspace(-1, 1, 256, device=dense.device)
    absmax_codes, nested_absmax, offset = eager.quantize_absmax(absmax, levels)
    return codes, [absmax_codes, nested_absmax, levels, offset], [*dense.shape, BLOCK_SIZE, 0, NESTED_BLOCK_SIZE]
