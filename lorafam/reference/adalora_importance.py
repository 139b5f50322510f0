"""AdaLoRA's importance of a parameter w (arXiv 2303.10512, equations 8 to 11) and of a triplet (one rank).

    I = |w · ∂L/∂w|          Ī ← β₁ Ī + (1 - β₁) I          U ← β₂ U + (1 - β₂) |I - Ī|          score = Ī · U

    S_i = score(E_i) + mean_k score(A_ik) + mean_n score(B_ni)

The allocator prunes the triplets of the smallest S_i, by setting their E_i to 0.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Importance(NamedTuple):
    """The smoothed sensitivity Ī, its uncertainty U, and their product, all of the parameter's shape."""

    sensitivity: Tensor
    uncertainty: Tensor
    score: Tensor


def importance_update(
    parameter: Tensor, grad: Tensor, sensitivity: Tensor, uncertainty: Tensor, beta1: float, beta2: float
) -> Importance:
    """The importance after one step, from that before (zeros at first). All tensors have the parameter's shape.

    U takes the new Ī. Raises ValueError for other shapes, or a beta outside (0, 1).
    """
    for name, tensor in (("grad", grad), ("sensitivity", sensitivity), ("uncertainty", uncertainty)):
        if tensor.shape != parameter.shape:
            raise ValueError(f"{name}: expected shape {list(parameter.shape)}, got {list(tensor.shape)}")
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 < beta < 1:
            raise ValueError(f"{name}: expected a factor in (0, 1), got {beta}")
    now = (parameter * grad).abs()
    sensitivity = beta1 * sensitivity + (1 - beta1) * now
    uncertainty = beta2 * uncertainty + (1 - beta2) * (now - sensitivity).abs()
    return Importance(sensitivity, uncertainty, sensitivity * uncertainty)


def triplet_scores(score_A: Tensor, score_E: Tensor, score_B: Tensor) -> Tensor:
    """S [r] of the scores of A [r, K], E [r, 1] and B [N, r]. Raises ValueError for other shapes."""
    rank = score_E.shape[0]
    if score_E.shape != (rank, 1):
        raise ValueError(f"score_E: expected shape [r, 1], got {list(score_E.shape)}")
    if score_A.ndim != 2 or score_A.shape[0] != rank:
        raise ValueError(f"score_A: expected shape [{rank}, K], got {list(score_A.shape)}")
    if score_B.ndim != 2 or score_B.shape[1] != rank:
        raise ValueError(f"score_B: expected shape [N, {rank}], got {list(score_B.shape)}")
    return score_E.squeeze(1) + (score_A.mean(1) + score_B.mean(0))
