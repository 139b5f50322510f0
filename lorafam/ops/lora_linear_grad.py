"""dx = (G ∘ c) W + drop'(Q A): G [M, N], W [N, K] dense or 4-bit, Q [M, r], A [r, K] → dx [M, K] in G's dtype.

drop' multiplies by the forward's mask, regenerated from the seed. Q and A are both given or both None.
"""

from __future__ import annotations

import torch

from .by_storage import check_storage, weight_shape
from .checks import check_dense_dtype, check_dropout, check_factor, check_tokens, check_vector
from .library import define


def _check(
    grad_y: torch.Tensor,
    data: torch.Tensor,
    scales: list[torch.Tensor],
    layout: list[int],
    c: torch.Tensor | None,
    Q: torch.Tensor | None,
    A: torch.Tensor | None,
    seed: torch.Tensor | None,
    dropout_p: float,
) -> None:
    check_storage(data, scales, layout)
    out_features, in_features = weight_shape(data, layout)
    check_tokens("grad_y", grad_y, out_features, data.device)
    check_dense_dtype("grad_y", grad_y, data, layout)
    check_vector("magnitude", c, out_features, data.device)
    if (Q is None) != (A is None):
        raise ValueError("Q, A: expected both or neither")
    if Q is not None and A is not None:
        check_factor("A", A, (None, in_features), data.device)
        check_factor("Q", Q, (grad_y.shape[0], A.shape[0]), data.device)
    check_dropout(seed, dropout_p, data.device)


def _fake(
    grad_y: torch.Tensor,
    data: torch.Tensor,
    scales: list[torch.Tensor],
    layout: list[int],
    c: torch.Tensor | None,
    Q: torch.Tensor | None,
    A: torch.Tensor | None,
    seed: torch.Tensor | None,
    dropout_p: float,
) -> torch.Tensor:
    return grad_y.new_empty((grad_y.shape[0], weight_shape(data, layout)[1]))


define(
    "lora_linear_grad",
    "(Tensor grad_y, Tensor data, Tensor[] scales, int[] layout, Tensor? c, Tensor? Q, Tensor? A, Tensor? seed, "
    "float dropout_p) -> Tensor",
    check=_check,
    fake=_fake,
)
