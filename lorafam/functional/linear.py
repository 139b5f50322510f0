"""One adapter: every method is a choice of B̂ and c."""

from __future__ import annotations

import torch

from ..autograd import (
    DoraInputDropoutFunction,
    DoraLinearFunction,
    FrozenLinearFunction,
    LoraLinearFunction,
    LowRankFunction,
    adapted_forward,
    applied,
)
from ..backends.undispatched import call
from ..ops.adapted import Adapted
from ..ops.checks import check_factor, check_vector
from .arguments import Weight, check_factors, mask_seed, recorded, restored, storage_of, tokens_of
from .norms import norm_of

Tensor = torch.Tensor


def nf4_linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Y = x Wᵀ + bias."""
    storage = storage_of(x, weight)
    flat = tokens_of(x, storage)
    if recorded(flat, bias):
        y = applied(FrozenLinearFunction, flat, bias, storage.data, tuple(storage.layout), *storage.scales)
    else:
        y = call("lora_linear", flat, *storage, None, None, None, bias)
    return restored(y, x)


def lora_linear(
    x: Tensor,
    weight: Weight,
    A: Tensor,
    B: Tensor,
    scaling: float | Tensor,
    bias: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | int | None = None,
) -> Tensor:
    """Y = x Wᵀ + s drop(x) Aᵀ Bᵀ + bias (LoRA, arXiv 2106.09685; on an NF4Weight QLoRA, arXiv 2305.14314).

    `scaling` is α/r, or α/√r for rsLoRA (arXiv 2312.03732). `seed` (int64) fixes the dropout mask; None draws one from
    the device's generator when it is needed.
    """
    storage = storage_of(x, weight)
    flat = tokens_of(x, storage)
    out_features, in_features = storage.shape
    check_factors(A, B, in_features, out_features, storage.data.device)
    seed = mask_seed(flat, dropout_p, training, seed)
    if recorded(flat, A, B, scaling, bias):
        data, scales, layout = storage
        y = applied(LoraLinearFunction, flat, A, B, scaling, bias, seed, dropout_p, data, tuple(layout), *scales)
    else:
        y, _ = adapted_forward(flat, Adapted(A, B, scaling, None, bias, storage), seed, dropout_p)
    return restored(y, x)


def adalora_linear(
    x: Tensor,
    weight: Weight,
    A: Tensor,
    E: Tensor,
    B: Tensor,
    scaling: float | Tensor,
    rank_num: float | Tensor,
    bias: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | int | None = None,
) -> Tensor:
    """Y = x Wᵀ + s/(rank_num + 1e-5) drop(x) (A ∘ E)ᵀ Bᵀ + bias with E [r, 1] (AdaLoRA, arXiv 2303.10512, scaled as in
    PEFT).
    """
    check_factor("E", E, (A.shape[0], 1), A.device)
    check_factor("B", B, (None, A.shape[0]), A.device)
    scale = adalora_scale(E, scaling, rank_num)
    return lora_linear(x, weight, A, B, scale, bias, dropout_p=dropout_p, training=training, seed=seed)


def adalora_scale(E: Tensor, scaling: float | Tensor, rank_num: float | Tensor) -> Tensor:
    """s/(rank_num + 1e-5) E [r], by which B is multiplied: AdaLoRA as a parametrisation of the one formula."""
    return E.squeeze(1) * (scaling / (rank_num + 1e-5))


def dora_linear(
    x: Tensor,
    weight: Weight,
    A: Tensor,
    B: Tensor,
    magnitude: Tensor,
    scaling: float | Tensor,
    bias: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    dora_dropout: str = "adapter",
    training: bool = False,
    seed: Tensor | int | None = None,
    norm: Tensor | None = None,
    norm_gradient: bool = False,
) -> Tensor:
    """Y = m/n ∘ (x Wᵀ + s drop(x) Aᵀ Bᵀ) + bias, n = ‖W + s B A‖ per output feature (DoRA, arXiv 2402.09353).

    No gradient flows through n, as in the paper's section 4.3, unless `norm_gradient`, or a `norm` that has one.
    `dora_dropout="adapter"` drops the low-rank path only (the paper), `"input"` both, as PEFT does. `norm` [N] is
    `row_norm`'s result when the caller has it; None computes it.
    """
    if dora_dropout not in ("adapter", "input"):
        raise ValueError(f"dora_dropout: expected 'adapter' or 'input', got {dora_dropout!r}")
    storage = storage_of(x, weight)
    flat = tokens_of(x, storage)
    out_features, in_features = storage.shape
    check_factors(A, B, in_features, out_features, storage.data.device)
    check_vector("magnitude", magnitude, out_features, storage.data.device)
    check_vector("norm", norm, out_features, storage.data.device)
    if norm is None:
        norm = norm_of(weight, storage, A, B, scaling, differentiable=norm_gradient)
    seed = mask_seed(flat, dropout_p, training, seed)
    if (seed is None or dora_dropout == "adapter") and not recorded(flat, A, B, scaling, magnitude, norm, bias):
        adapted = Adapted(A, B, scaling, magnitude / norm, bias, storage)
        y, _ = adapted_forward(flat, adapted, seed, dropout_p)
        return restored(y, x)
    function = DoraInputDropoutFunction if seed is not None and dora_dropout == "input" else DoraLinearFunction
    y = applied(
        function,
        flat,
        A,
        B,
        scaling,
        magnitude,
        norm,
        bias,
        seed,
        dropout_p,
        storage.data,
        tuple(storage.layout),
        *storage.scales,
    )
    return restored(y, x)


def low_rank(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float | Tensor,
    *,
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | int | None = None,
) -> Tensor:
    """U = drop(x) Aᵀ (B ∘ scaling)ᵀ in fp32: the update alone, for a base that computes its own product. `scaling` is a
    number, or a value a rank [r].
    """
    check_factors(A, B, x.shape[-1], B.shape[0], x.device)
    flat = x.reshape(-1, x.shape[-1])
    u = applied(LowRankFunction, flat, A, B, scaling, mask_seed(flat, dropout_p, training, seed), dropout_p)
    return u.view(*x.shape[:-1], B.shape[0])
