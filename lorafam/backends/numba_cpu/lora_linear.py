"""Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias: a 4-bit W goes by in panels of rows, a dense one in one product.

The accumulator starts from P B̂ᵀ; everything is formed in fp32 (fp64 for fp64 x) and rounded once.
"""

from __future__ import annotations

import torch

from ...ops.by_storage import is_dense, weight_shape
from ...ops.library import accumulate_dtype
from .panels import PLANES_BYTES, panels, plane_panels
from .product import TERMS, add_product, product, suits_planes, sum_of_products

Tensor = torch.Tensor


@torch.no_grad()
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
    dtype = accumulate_dtype(x.dtype)
    dense = is_dense(layout)
    wide = x.to(dtype)
    if dense:
        # the base's product in the weight's own dtype, as eager has it; what follows is formed in fp32
        y = product(x, data.to(x.dtype).T).to(dtype)
        if P is not None and B_hat is not None:
            y = add_product(y, P.to(dtype), B_hat.to(dtype).T)
    elif suits_planes(wide):
        y = _by_planes(wide, data, scales, layout, P, B_hat)
    else:
        y = _start(wide, weight_shape(data, layout)[0], P, B_hat)
        for first, end, rows in panels(data, scales, layout, dtype):
            if P is None:
                y[:, first:end] = product(wide, rows.T)
            else:
                y[:, first:end].addmm_(wide, rows.T)
    if c is not None:
        y.mul_(c)
    if bias is not None:
        y.add_(bias)
    return y.to(x.dtype)


def _by_planes(
    x: Tensor, data: Tensor, scales: list[Tensor], layout: list[int], P: Tensor | None, B_hat: Tensor | None
) -> Tensor:
    """x Wᵀ + P B̂ᵀ, the low-rank part as one more plane."""
    out_features = layout[0]
    y = x.new_empty(x.shape[0], out_features)
    for first, end, planes in plane_panels(data, scales, layout, TERMS, PLANES_BYTES):
        factors = list(zip(x.split(TERMS, 1), planes, strict=True))
        if P is not None and B_hat is not None and P.shape[1] > 0:
            factors.append((P.float(), B_hat[first:end].float().contiguous()))
        part = sum_of_products(factors)
        if end - first == out_features:
            return part
        y[:, first:end] = part
    return y


def _start(x: Tensor, out_features: int, P: Tensor | None, B_hat: Tensor | None) -> Tensor:
    """The accumulator: P B̂ᵀ, or uninitialised where each panel writes its columns."""
    if P is not None and B_hat is not None:
        return product(P.to(x.dtype), B_hat.to(x.dtype).T)
    y = x.new_empty(x.shape[0], out_features)
    return y if x.shape[1] else y.zero_()
