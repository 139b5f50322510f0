"""Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias: x [M, K], W [N, K] dense or 4-bit, P [M, r], B̂ [N, r], c and bias [N] → Y [M, N].

Sums are formed in fp32 and rounded to x's dtype. P and B̂ are both given or both None; without them it is the base's
product.
"""

from __future__ import annotations

import torch

from .by_storage import check_storage, weight_shape
from .checks import check_dense_dtype, check_factor, check_tokens, check_vector
from .library import define


def _check(
    x: torch.Tensor,
    data: torch.Tensor,
    scales: list[torch.Tensor],
    layout: list[int],
    P: torch.Tensor | None,
    B_hat: torch.Tensor | None,
    c: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> None:
    check_storage(data, scales, layout)
    out_features, in_features = weight_shape(data, layout)
    check_tokens("x", x, in_features, data.device)
    check_dense_dtype("x", x, data, layout)
    if (P is None) != (B_hat is None):
        raise ValueError("P, B_hat: expected both or neither")
    if P is not None and B_hat is not None:
        check_factor("B", B_hat, (out_features, None), data.device)
        check_factor("P", P, (x.shape[0], B_hat.shape[1]), data.device)
    check_vector("magnitude", c, out_features, data.device)
    check_vector("bias", bias, out_features, data.device)


def _fake(
    x: torch.Tensor,
    data: torch.Tensor,
    scales: list[torch.Tensor],
    layout: list[int],
    P: torch.Tensor | None,
    B_hat: torch.Tensor | None,
    c: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    return x.new_empty((x.shape[0], weight_shape(data, layout)[0]))


define(
    "lora_linear",
    "(Tensor x, Tensor data, Tensor[] scales, int[] layout, Tensor? P, Tensor? B_hat, Tensor? c, Tensor? bias) "
    "-> Tensor",
    check=_check,
    fake=_fake,
)
