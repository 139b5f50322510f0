"""Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias: one pass over a 4-bit W, torch's products for a dense one.

Sums are formed in fp32 (fp64 for fp64 x) and rounded once.
"""

from __future__ import annotations

import torch

from ...ops.by_storage import is_dense
from ...ops.library import accumulate_dtype
from . import four_bit_product
from .product import add_product, product

Tensor = torch.Tensor


def lora_linear(
    x: Tensor,
    data: Tensor,
    scales: list[Tensor],
    layout: list[int],
    P: Tensor | None,
    B_hat: Tensor | None,
    c: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    if is_dense(layout):
        return _dense(x, data, P, B_hat, c, bias)
    return four_bit_product.forward(x, data, scales, layout, P, B_hat, c, bias)


@torch.no_grad()
def _dense(
    x: Tensor, weight: Tensor, P: Tensor | None, B_hat: Tensor | None, c: Tensor | None, bias: Tensor | None
) -> Tensor:
    dtype = accumulate_dtype(x.dtype)
    # a bias that nothing scales goes first, as in nn.Linear: an adapter with B = 0 then changes no bit
    first = bias if c is None and bias is not None and bias.dtype == x.dtype == dtype else None
    # the base's product in the weight's own dtype, as eager has it; what follows is formed in fp32
    y = product(x, weight.to(x.dtype).T, first).to(dtype)
    if P is not None and B_hat is not None:
        y = add_product(y, P.to(dtype), B_hat.to(dtype).T)
    if c is not None:
        y.mul_(c)
    if bias is not None and first is None:
        y.add_(bias)
    return y.to(x.dtype)
