"""How far AdaLoRA's factors are from orthogonal, for all layers at once (arXiv 2303.10512, equation 4).

    S = P Pᵀ − I [r, r]          d = ‖S‖_F          dP = (2 g / d) S P, 0 where d = 0

P is A [r, K] where `rank_dims` says 0, B [N, r] transposed where it says 1. `adalora_penalty` gives d [factors] and all
S, flattened one after the other; `adalora_penalty_grad` each factor's gradient, in the factor's shape, from
g = ∂loss/∂d. Sums are formed, and results given, in fp32 (fp64 where the factors are fp64).
"""

from __future__ import annotations

import torch

from .checks import check_device
from .library import accumulate_dtype, define


def _check(factors: list[torch.Tensor], rank_dims: list[int]) -> None:
    if not factors:
        raise ValueError("factors: expected at least one matrix, got none")
    if len(rank_dims) != len(factors) or any(dim not in (0, 1) for dim in rank_dims):
        raise ValueError(f"rank_dims: expected {len(factors)} values of 0 or 1, got {list(rank_dims)}")
    for index, factor in enumerate(factors):
        if factor.ndim != 2 or not factor.is_floating_point():
            raise ValueError(
                f"factors[{index}]: expected a floating-point matrix, got {factor.dtype} {list(factor.shape)}"
            )
        if factor.dtype != factors[0].dtype:
            raise TypeError(f"factors[{index}]: expected {factors[0].dtype} like the first, got {factor.dtype}")
        check_device(f"factors[{index}]", factor, factors[0].device)


def _deviations(factors: list[torch.Tensor], rank_dims: list[int]) -> int:
    return sum(factor.shape[dim] ** 2 for factor, dim in zip(factors, rank_dims, strict=True))


def _fake(factors: list[torch.Tensor], rank_dims: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulate_dtype(factors[0].dtype)
    return (
        factors[0].new_empty(len(factors), dtype=dtype),
        factors[0].new_empty(_deviations(factors, rank_dims), dtype=dtype),
    )


define("adalora_penalty", "(Tensor[] factors, int[] rank_dims) -> (Tensor, Tensor)", check=_check, fake=_fake)


def _check_grad(
    factors: list[torch.Tensor],
    rank_dims: list[int],
    distances: torch.Tensor,
    deviations: torch.Tensor,
    grad_distances: torch.Tensor,
) -> None:
    _check(factors, rank_dims)
    sizes = {
        "distances": (distances, len(factors)),
        "deviations": (deviations, _deviations(factors, rank_dims)),
        "grad_distances": (grad_distances, len(factors)),
    }
    for name, (tensor, size) in sizes.items():
        if tensor.shape != (size,):
            raise ValueError(f"{name}: expected [{size}], got {list(tensor.shape)}")
        check_device(name, tensor, factors[0].device)


def _fake_grad(
    factors: list[torch.Tensor],
    rank_dims: list[int],
    distances: torch.Tensor,
    deviations: torch.Tensor,
    grad_distances: torch.Tensor,
) -> list[torch.Tensor]:
    return [factor.new_empty(factor.shape, dtype=accumulate_dtype(factor.dtype)) for factor in factors]


define(
    "adalora_penalty_grad",
    "(Tensor[] factors, int[] rank_dims, Tensor distances, Tensor deviations, Tensor grad_distances) -> Tensor[]",
    check=_check_grad,
    fake=_fake_grad,
)
