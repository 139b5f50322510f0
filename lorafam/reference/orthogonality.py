"""AdaLoRA's penalty, which keeps A and B near the singular vectors they stand for (arXiv 2303.10512, equation 4).

    R = mean over all A and B of ‖A Aᵀ - I‖_F and ‖Bᵀ B - I‖_F

As in PEFT: a mean over the matrices of norms that aren't squared, where the paper sums squares.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def orthogonality_penalty(As: Sequence[Tensor], Bs: Sequence[Tensor]) -> Tensor:
    """R [] of the factors A [r, K] and B [N, r] of all layers. Raises ValueError when there are none."""
    grams = [A @ A.T for A in As] + [B.T @ B for B in Bs]
    if not grams:
        raise ValueError("As, Bs: expected the factors of at least one layer, got none")
    distances = [torch.linalg.matrix_norm(gram - torch.eye(len(gram)).to(gram)) for gram in grams]
    return torch.stack(distances).mean()
