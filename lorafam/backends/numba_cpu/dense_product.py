"""Both products with a dense weight: few tokens by kernels that read W once, more of them by our kernels or the
platform's product, whichever this processor runs faster (`dense_choice`).

Sums are formed in fp32 (fp64 for fp64 tokens); what isn't fp32 is rounded once, by the platform's product twice: it
comes in the tokens' own dtype, as eager has it, and the low-rank part is added in fp32.
"""

from __future__ import annotations

import functools

import torch

from ...ops.library import accumulate_dtype, in_dtype
from ..plan import Plan
from . import dense_choice, dense_few_tokens, dense_few_tokens_backward, tiles_backward, tiles_forward
from .four_bit import dense
from .four_bit_product import single
from .huge_pages import new_matrix
from .processor import Processor, processor
from .product import add_product, product

Tensor = torch.Tensor
_TALL = 16


def is_own(direction: str, weight: Tensor, dtype: torch.dtype, tokens: int) -> bool:
    """Whether a product ("forward") or dx ("backward") of tokens of a weight's dtype is known to be our kernels'."""
    back = direction == "backward"
    if dense_few_tokens.suits(weight, dtype, tokens, backward=back):
        return True
    if (back and _is_tall(weight)) or not _suits_tiles(weight, dtype, tokens):
        return False
    return dense_choice.known(direction, weight, dtype, tokens) == dense_choice.OWN


def forward_into(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    P: Tensor | None,
    B_hat: Tensor | None,
    c: Tensor | None,
    bias: Tensor | None,
    cpu: Processor,
) -> None:
    """Our kernels' c ∘ (x Wᵀ + P B̂ᵀ) + bias into y; x and y in one dtype, fp32 or bf16, W in that or bf16,
    the rest fp32, all contiguous.
    """
    if dense_few_tokens.suits(weight, x.dtype, x.shape[0]):
        dense_few_tokens.forward(x, weight, P, B_hat, c, bias, y, cpu)
    else:
        tiles_forward.forward(x, dense(weight), P, B_hat, c, bias, y, cpu)


def backward_into(
    dx: Tensor,
    grad_y: Tensor,
    weight: Tensor,
    c: Tensor | None,
    Q: Tensor | None,
    A: Tensor | None,
    start: Tensor | None,
    cpu: Processor,
) -> None:
    """Our kernels' (G ∘ c) W + Q A + start into dx, of the same kinds."""
    if dense_few_tokens.suits(weight, grad_y.dtype, grad_y.shape[0], backward=True):
        dense_few_tokens_backward.backward(grad_y, weight, c, Q, A, start, dx, cpu)
    else:
        tiles_backward.backward(grad_y, dense(weight), c, Q, A, start, dx, cpu)


def forward(
    x: Tensor, weight: Tensor, P: Tensor | None, B_hat: Tensor | None, c: Tensor | None, bias: Tensor | None
) -> Tensor:
    """c ∘ (x Wᵀ + P B̂ᵀ) + bias, [M, N] in x's dtype."""
    own = functools.partial(_own_forward, x, weight, P, B_hat, c, bias)
    if dense_few_tokens.suits(weight, x.dtype, x.shape[0]):
        return own()
    platform = functools.partial(_forward, x, weight, P, B_hat, c, bias)
    if not _suits_tiles(weight, x.dtype, x.shape[0]):
        return platform()
    return dense_choice.faster("forward", weight, x.dtype, x.shape[0], own, platform)


def _is_tall(weight: Tensor) -> bool:
    """Whether dx is left to the platform: all of G is packed, of a vocabulary's as much memory as G again."""
    return weight.shape[0] > _TALL * weight.shape[1]


def _suits_tiles(weight: Tensor, dtype: torch.dtype, tokens: int) -> bool:
    return (
        dtype in (torch.float32, torch.bfloat16)
        and weight.dtype in (dtype, torch.bfloat16)
        and weight.is_contiguous()
        and tokens > 0
        and dense_choice.is_worth_timing(weight)
    )


def _own_forward(
    x: Tensor, weight: Tensor, P: Tensor | None, B_hat: Tensor | None, c: Tensor | None, bias: Tensor | None
) -> Tensor:
    y = new_matrix(x, x.shape[0], weight.shape[0])
    forward_into(y, x.contiguous(), weight, single(P), single(B_hat), single(c), single(bias), processor())
    return y


def _forward(
    x: Tensor, weight: Tensor, P: Tensor | None, B_hat: Tensor | None, c: Tensor | None, bias: Tensor | None
) -> Tensor:
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
    own = functools.partial(_own_backward, grad_y, weight, c, Q, A, start)
    if dense_few_tokens.suits(weight, grad_y.dtype, grad_y.shape[0], backward=True):
        return own()
    platform = functools.partial(_backward, grad_y, weight, c, Q, A, start)
    if _is_tall(weight) or not _suits_tiles(weight, grad_y.dtype, grad_y.shape[0]):
        return platform()
    return dense_choice.faster("backward", weight, grad_y.dtype, grad_y.shape[0], own, platform)


def _own_backward(
    grad_y: Tensor, weight: Tensor, c: Tensor | None, Q: Tensor | None, A: Tensor | None, start: Tensor | None
) -> Tensor:
    dx = grad_y.new_empty(grad_y.shape[0], weight.shape[1])
    backward_into(dx, grad_y.contiguous(), weight, single(c), single(Q), single(A), single(start), processor())
    return dx


def _backward(
    grad_y: Tensor, weight: Tensor, c: Tensor | None, Q: Tensor | None, A: Tensor | None, start: Tensor | None
) -> Tensor:
    dtype = accumulate_dtype(grad_y.dtype)
    scaled = grad_y if c is None else in_dtype(grad_y * c, grad_y.dtype)
    dx = product(scaled, in_dtype(weight, grad_y.dtype))
    if Q is not None and A is not None:
        dx = add_product(in_dtype(dx, dtype), in_dtype(Q, dtype), in_dtype(A, dtype))
    if start is not None:
        dx = in_dtype(dx, dtype).add_(start)
    return in_dtype(dx, grad_y.dtype)


def plan(weight: Tensor, tokens: int) -> Plan:
    """The path of `forward` for that many tokens of the weight's dtype: "registers", "tiles" or "dense"."""
    cpu = processor()
    if not dense_few_tokens.suits(weight, weight.dtype, tokens):
        if not _suits_tiles(weight, weight.dtype, tokens):
            return Plan("dense")
        choice = dense_choice.known("forward", weight, weight.dtype, tokens)
        if choice is None:
            return Plan("dense", "or our tiles, if they turn out faster at the first call")
        if choice == dense_choice.PLATFORM:
            return Plan("dense", "timed here: faster than our tiles")
        return Plan("tiles", f"{cpu.name}, {cpu.lanes} lanes, fp32; timed here: faster than the platform's product")
    pairs = weight.dtype == torch.bfloat16 and cpu.bf16
    return Plan("registers", f"{cpu.name}, {cpu.lanes} lanes, {'pairs of bf16' if pairs else 'fp32'}")
