"""Both products with a dense weight: few tokens by kernels that read W once, more of them by the platform's product.

Sums are formed in fp32 (fp64 for fp64 tokens); what isn't fp32 is rounded once, by the platform's product twice: it
comes in the tokens' own dtype, as eager has it, and the low-rank part is added in fp32.
"""

from __future__ import annotations

import torch

from ...ops.library import accumulate_dtype, in_dtype
from . import dense_few_tokens
from .four_bit_product import Plan, single
from .processor import processor
from .product import add_product, product

Tensor = torch.Tensor


def forward(
    x: Tensor, weight: Tensor, P: Tensor | None, B_hat: Tensor | None, c: Tensor | None, bias: Tensor | None
) -> Tensor:
    """c ∘ (x Wᵀ + P B̂ᵀ) + bias, [M, N] in x's dtype."""
    if dense_few_tokens.suits(weight, x.dtype, x.shape[0]):
        y = x.new_empty(x.shape[0], weight.shape[0])
        dense_few_tokens.forward(
            x.contiguous(), weight, single(P), single(B_hat), single(c), single(bias), y, processor()
        )
        return y
    dtype = accumulate_dtype(x.dtype)
    # a bias that nothing scales goes first, as in nn.Linear: an adapter with B = 0 then changes no bit
    first = bias if c is None and bias is not None and bias.dtype == x.dtype == dtype else None
    y = in_dtype(product(x, in_dtype(weight, x.dtype).T, first), dtype)
    if P is not None and B_hat is not None:
        y = add_product(y, in_dtype(P, dtype), in_dtype(B_hat, dtype).T)
    if c is not None:
        y.mul_(c)
    if bias is not None and first is None:
        y.add_(bias)
    return in_dtype(y, x.dtype)


def backward(
    grad_y: Tensor, weight: Tensor, c: Tensor | None, Q: Tensor | None, A: Tensor | None, start: Tensor | None
) -> Tensor:
    """(G ∘ c) W + Q A + start, [M, K] in G's dtype."""
    if dense_few_tokens.suits(weight, grad_y.dtype, grad_y.shape[0], backward=True):
        dx = grad_y.new_empty(grad_y.shape[0], weight.shape[1])
        dense_few_tokens.backward(
            grad_y.contiguous(), weight, single(c), single(Q), single(A), single(start), dx, processor()
        )
        return dx
    dtype = accumulate_dtype(grad_y.dtype)
    scaled = grad_y if c is None else in_dtype(grad_y * c, grad_y.dtype)
    dx = product(scaled, in_dtype(weight, grad_y.dtype))
    if Q is not None and A is not None:
        dx = add_product(in_dtype(dx, dtype), in_dtype(Q, dtype), in_dtype(A, dtype))
    if start is not None:
        dx = in_dtype(dx, dtype).add_(start)
    return in_dtype(dx, grad_y.dtype)


def plan(weight: Tensor, tokens: int) -> Plan:
    """The path of `forward` for that many tokens of the weight's dtype: "registers", or "dense"."""
    if not dense_few_tokens.suits(weight, weight.dtype, tokens):
        return Plan("dense", None)
    cpu = processor()
    pairs = weight.dtype == torch.bfloat16 and cpu.bf16
    return Plan("registers", f"{cpu.name}, {cpu.lanes} lanes, {'pairs of bf16' if pairs else 'fp32'}")
