"""Both products with a 4-bit weight, in the dtype of the tokens: fp32 and bf16 by the kernels, fp16 through fp32, fp64
in panels by the platform's GEMM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch

from ...ops.by_storage import Storage
from ...ops.lora_linear_group import Member
from ..plan import Plan
from . import few_tokens, parallel, tiles_backward, tiles_forward
from .dense_few_tokens_backward import add_low_rank
from .four_bit import Weight, describe
from .huge_pages import new_matrix
from .panels import panels
from .processor import Processor, processor
from .product import add_product

Tensor = torch.Tensor


def forward(
    x: Tensor,
    weight: Storage,
    P: Tensor | None,
    B_hat: Tensor | None,
    c: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """c ∘ (x Wᵀ + P B̂ᵀ) + bias, [M, N] in x's dtype."""
    if x.dtype == torch.float64:
        return _in_double(x, weight, P, B_hat, c, bias)
    if x.dtype == torch.float16:
        return forward(x.float(), weight, P, B_hat, c, bias).to(x.dtype)
    y = new_matrix(x, x.shape[0], weight.layout[0])
    if y.numel():
        given = single(P), single(B_hat), single(c), single(bias)
        forward_into(y, x.contiguous(), describe(weight), *given, processor())
    return y


def forward_into(
    y: Tensor,
    x: Tensor,
    weight: Weight,
    P: Tensor | None,
    B_hat: Tensor | None,
    c: Tensor | None,
    bias: Tensor | None,
    cpu: Processor,
) -> None:
    """The same into y; x and y in fp32 or bf16, the rest fp32, all contiguous."""
    if x.shape[0] <= few_tokens.FORWARD_TOKENS and few_tokens.suits(weight, cpu):
        few_tokens.forward(x, [few_tokens.Product(weight, P, B_hat, c, bias, y)], cpu)
    else:
        tiles_forward.forward(x, weight, P, B_hat, c, bias, y, cpu)


def forward_group(x: Tensor, each: Sequence[Member]) -> list[Tensor] | None:
    """`forward` of each in one call of the kernel for few tokens; None where it isn't for them."""
    cpu = processor()
    few = 0 < x.shape[0] <= few_tokens.FORWARD_TOKENS and x.dtype in (torch.float32, torch.bfloat16)
    weights = [describe(member.weight) for member in each] if few else []
    alike = len({(weight.block_bits, weight.absmax_codes != 0) for weight in weights}) == 1
    if not alike or not all(few_tokens.suits(weight, cpu) for weight in weights):
        return None
    ys = [x.new_empty(x.shape[0], weight.rows) for weight in weights]
    products = [
        few_tokens.Product(weight, single(member.P), single(member.B_hat), None, single(member.bias), y)
        for weight, member, y in zip(weights, each, ys, strict=True)
    ]
    few_tokens.forward(x.contiguous(), products, cpu)
    return ys


def backward(
    grad_y: Tensor,
    weight: Storage,
    c: Tensor | None,
    Q: Tensor | None,
    A: Tensor | None,
    start: Tensor | None,
) -> Tensor:
    """(G ∘ c) W + Q A + start, [M, K] in G's dtype."""
    if grad_y.dtype == torch.float64:
        return _back_in_double(grad_y, weight, c, Q, A, start)
    if grad_y.dtype == torch.float16:
        return backward(grad_y.float(), weight, c, Q, A, start).to(grad_y.dtype)
    dx = grad_y.new_empty(grad_y.shape[0], weight.layout[1])
    if not dx.numel():
        return dx
    given = single(c), single(Q), single(A), single(start)
    backward_into(dx, grad_y.contiguous(), describe(weight), *given, processor())
    return dx


def backward_into(
    dx: Tensor,
    grad_y: Tensor,
    weight: Weight,
    c: Tensor | None,
    Q: Tensor | None,
    A: Tensor | None,
    start: Tensor | None,
    cpu: Processor,
) -> None:
    """The same into dx; grad_y and dx in fp32 or bf16, the rest fp32, all contiguous."""
    if grad_y.shape[0] <= few_tokens.BACKWARD_TOKENS and few_tokens.suits(weight, cpu):
        if Q is not None and A is not None and Q.shape[1]:
            update = parallel.kept_matrix("Q A", *dx.shape)
            add_low_rank(Q, A, start, update, cpu)
            start = update
        few_tokens.backward(grad_y, weight, c, start, dx, cpu)
    else:
        tiles_backward.backward(grad_y, weight, c, Q, A, start, dx, cpu)


def plan(storage: Storage, tokens: int, dtype: torch.dtype) -> Plan:
    """The path of `forward` for that many tokens of a dtype."""
    if dtype == torch.float64:
        return Plan("panels", "fp64")
    cpu, weight = processor(), describe(storage)
    pairs = dtype == torch.bfloat16 and cpu.bf16
    how = f"{cpu.name}, {cpu.lanes} lanes, {'pairs of bf16' if pairs else 'fp32'}"
    if tokens > few_tokens.FORWARD_TOKENS:
        return Plan("tiles", how)
    if few_tokens.suits(weight, cpu):
        return Plan("registers", how)
    return Plan("tiles", f"{how}; rows that aren't whole blocks and whole lines of {8 * cpu.lanes} weights")


@overload
def single(tensor: Tensor) -> Tensor: ...
@overload
def single(tensor: None) -> None: ...
@overload
def single(tensor: Tensor | None) -> Tensor | None: ...
def single(tensor: Tensor | None) -> Tensor | None:
    """fp32, contiguous."""
    if tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous()):
        return tensor
    return tensor.to(torch.float32).contiguous()


def as_read(tensor: Tensor) -> Tensor:
    """fp32 or bf16, contiguous."""
    return (tensor if tensor.dtype in (torch.float32, torch.bfloat16) else tensor.float()).contiguous()


def _in_double(
    x: Tensor,
    weight: Storage,
    P: Tensor | None,
    B_hat: Tensor | None,
    c: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    y = x.new_zeros(x.shape[0], weight.layout[0])
    for first, end, rows in panels(weight, x.dtype):
        y[:, first:end] = torch.mm(x, rows.T)
    if P is not None and B_hat is not None:
        y = y.addmm_(P.to(y.dtype), B_hat.to(y.dtype).T)
    if c is not None:
        y.mul_(c)
    return y if bias is None else y.add_(bias)


def _back_in_double(
    grad_y: Tensor,
    weight: Storage,
    c: Tensor | None,
    Q: Tensor | None,
    A: Tensor | None,
    start: Tensor | None,
) -> Tensor:
    dx = grad_y.new_zeros(grad_y.shape[0], weight.layout[1])
    scaled = grad_y if c is None else grad_y * c
    for first, end, rows in panels(weight, dx.dtype):
        dx = add_product(dx, scaled[:, first:end], rows)
    if Q is not None and A is not None:
        dx = dx.addmm_(Q.to(dx.dtype), A.to(dx.dtype))
    return dx if start is None else dx.add_(start)
