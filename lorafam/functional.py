"""The LoRA family on plain tensors: every method is a choice of B̂ and c in

    P = drop(x) Aᵀ        Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias

x [..., K] of any leading shape, `weight` a dense tensor [N, K] or an `NF4Weight`, A [r, K], B [N, r], bias [N] → Y
[..., N] in x's dtype. W is frozen; gradients flow to x, A, B, E, magnitude and bias. Under autocast x (and a dense W)
takes autocast's dtype, the factors keep theirs. Wrong shapes, dtypes or devices raise ValueError or TypeError naming
the argument.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import backends as backends
from .autograd import (
    DoraInputDropout,
    DoraLinear,
    Factors,
    FrozenLinear,
    GroupedLoraLinear,
    LoraLinear,
    LowRank,
    Orthogonality,
    grouped_forward,
    lora_forward,
    scaled,
)
from .backends.direct import call
from .ops.by_storage import Storage, dense_storage, joined, weight_shape
from .ops.checks import check_device, check_dropout, check_factor, check_vector
from .weights import NF4Weight

Tensor = torch.Tensor
Weight = Tensor | NF4Weight


def nf4_linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Y = x Wᵀ + bias."""
    storage = _storage(x, weight)
    flat = _tokens(x, storage)
    if _recorded(flat, bias):
        y = FrozenLinear.apply(flat, bias, storage.data, tuple(storage.layout), *storage.scales)
    else:
        y = call("lora_linear", flat, *storage, None, None, None, bias)
    return _restore(y, x)


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
    return _lora(x, weight, A, B, scaling, bias, dropout_p, training, seed)


def grouped_lora_linear(
    x: Tensor,
    weights: Sequence[Weight],
    As: Sequence[Tensor],
    Bs: Sequence[Tensor],
    scalings: Sequence[float | Tensor],
    biases: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, ...]:
    """Y_i = x W_iᵀ + s_i x A_iᵀ B_iᵀ + bias_i for every weight: the projections that get the same x (q, k and v; gate
    and up), each as `lora_linear` without dropout has it.

    x is read once for all low-rank parts; 4-bit weights of one block size are multiplied with few tokens in one call.
    Ranks may differ. A scaling is a number, or a value a rank [r_i].
    """
    biases = [None] * len(weights) if biases is None else biases
    several = {"weights": weights, "As": As, "Bs": Bs, "scalings": scalings, "biases": biases}
    counts = {name: len(values) for name, values in several.items()}
    if not weights or len(set(counts.values())) > 1:
        raise ValueError(f"weights, As, Bs, scalings, biases: expected as many of each, at least one, got {counts}")
    storages = [_storage(x, weight) for weight in weights]
    flat = _tokens(x, storages[0])
    for storage, A, B, bias in zip(storages, As, Bs, biases, strict=True):
        out_features, in_features = weight_shape(storage.data, storage.layout)
        if in_features != flat.shape[1]:
            raise ValueError(f"weights: expected all [N, {flat.shape[1]}], got [{out_features}, {in_features}]")
        _check_factors(A, B, in_features, out_features, flat.device)
        check_vector("bias", bias, out_features, flat.device)
    if len({len(storage.layout) for storage in storages}) > 1:
        each = zip(weights, As, Bs, scalings, biases, strict=True)
        return tuple(lora_linear(x, *member) for member in each)
    if _recorded(flat, *As, *Bs, *scalings, *biases):
        data, scales, layout = joined(storages)
        count = len(storages)
        ys = GroupedLoraLinear.apply(flat, tuple(layout), count, *As, *Bs, *scalings, *biases, *data, *scales)
    else:
        ys, _ = grouped_forward(flat, Factors(As, Bs, scalings, biases), storages)
    return tuple(_restore(y, x) for y in ys)


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
    return _lora(x, weight, A, B, adalora_scale(E, scaling, rank_num), bias, dropout_p, training, seed)


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
) -> Tensor:
    """Y = m/n ∘ (x Wᵀ + s drop(x) Aᵀ Bᵀ) + bias, n = ‖W + s B A‖ per output feature (DoRA, arXiv 2402.09353).

    No gradient flows through n. `dora_dropout="adapter"` drops the low-rank path only (the paper), `"input"` both, as
    PEFT does. `norm` [N] is `row_norm`'s result when the caller has it; None computes it.
    """
    if dora_dropout not in ("adapter", "input"):
        raise ValueError(f"dora_dropout: expected 'adapter' or 'input', got {dora_dropout!r}")
    storage = _storage(x, weight)
    flat = _tokens(x, storage)
    out_features, in_features = weight_shape(storage.data, storage.layout)
    _check_factors(A, B, in_features, out_features, storage.data.device)
    check_vector("magnitude", magnitude, out_features, storage.data.device)
    check_vector("norm", norm, out_features, storage.data.device)
    if norm is None:
        norm = _row_norm(weight, storage, A, B, scaling)
    seed = _seed(flat, dropout_p, training, seed)
    function = DoraInputDropout if seed is not None and dora_dropout == "input" else DoraLinear
    y = function.apply(
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
    return _restore(y, x)


def row_norm(
    weight: Weight, A: Tensor, B: Tensor, scaling: float | Tensor, *, weight_squared: Tensor | None = None
) -> Tensor:
    """n_j = ‖w_j + s b_j A‖₂ per output feature (the paper's column norm of Wᵀ), fp32 [N], without gradient.

    `weight_squared` [N] is ‖w_j‖² when the caller keeps it (an NF4Weight keeps its own).
    """
    storage = weight.storage() if isinstance(weight, NF4Weight) else dense_storage(weight)
    return _row_norm(weight, storage, A, B, scaling, weight_squared)


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
    _check_factors(A, B, x.shape[-1], B.shape[0], x.device)
    flat = x.reshape(-1, x.shape[-1])
    u = LowRank.apply(flat, A, B, scaling, _seed(flat, dropout_p, training, seed), dropout_p)
    return u.view(*x.shape[:-1], B.shape[0])


def orthogonality_penalty(As: Sequence[Tensor], Bs: Sequence[Tensor]) -> Tensor:
    """R [] = mean over all A [r, K] and B [N, r] of ‖A Aᵀ − I‖_F and ‖Bᵀ B − I‖_F, in fp32 (AdaLoRA, arXiv 2303.10512,
    equation 4, averaged and not squared as in PEFT).

    Raises ValueError when there are none. On a GPU one launch serves the factors of a whole model.
    """
    if not As and not Bs:
        raise ValueError("As, Bs: expected the factors of at least one layer, got none")
    return Orthogonality.apply((0,) * len(As) + (1,) * len(Bs), *As, *Bs).mean()


def _lora(
    x: Tensor,
    weight: Weight,
    A: Tensor,
    B: Tensor,
    scale: float | Tensor,
    bias: Tensor | None,
    dropout_p: float,
    training: bool,
    seed: Tensor | int | None,
) -> Tensor:
    storage = _storage(x, weight)
    flat = _tokens(x, storage)
    out_features, in_features = weight_shape(storage.data, storage.layout)
    _check_factors(A, B, in_features, out_features, storage.data.device)
    seed = _seed(flat, dropout_p, training, seed)
    data, scales, layout = storage
    if _recorded(flat, A, B, scale, bias):
        y = LoraLinear.apply(flat, A, B, scale, bias, seed, dropout_p, data, tuple(layout), *scales)
    else:
        y, _ = lora_forward(flat, A, B, scale, bias, seed, dropout_p, data, layout, scales)
    return _restore(y, x)


@torch.no_grad()
def _row_norm(
    weight: Weight,
    storage: Storage,
    A: Tensor,
    B: Tensor,
    scaling: float | Tensor,
    weight_squared: Tensor | None = None,
) -> Tensor:
    if weight_squared is None and isinstance(weight, NF4Weight):
        weight_squared = weight.squared_row_norm()
    return call("row_norm", *storage, A, scaled(B, scaling), weight_squared)


def _recorded(*values: Tensor | float | None) -> bool:
    """Whether autograd needs to know of a call: an autograd Function costs as much time as a small product."""
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _storage(x: Tensor, weight: Weight) -> Storage:
    """The weight as op arguments; under autocast a dense one in autocast's dtype, as F.linear would take it."""
    if isinstance(weight, NF4Weight):
        return weight.storage()
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor or an NF4Weight, got {type(weight).__name__}")
    if weight.requires_grad:
        raise ValueError("weight: expected a frozen weight, got one that requires gradients (it would get none)")
    if torch.is_autocast_enabled(weight.device.type):
        weight = weight.to(torch.get_autocast_dtype(weight.device.type))
    return dense_storage(weight)


def _tokens(x: Tensor, storage: Storage) -> Tensor:
    """x as [tokens, K], in autocast's dtype where autocast is on."""
    in_features = weight_shape(storage.data, storage.layout)[1]
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(f"x: expected [..., {in_features}], got {list(x.shape)}")
    check_device("x", x, storage.data.device)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    # a matrix needs no view, forward or backward
    return x if x.ndim == 2 else x.reshape(-1, in_features)


def _restore(y: Tensor, x: Tensor) -> Tensor:
    """Y [tokens, N] with x's leading shape: itself or a view, so that autograd sees an in-place change of it."""
    return y if x.ndim == 2 else y.view(*x.shape[:-1], y.shape[1])


def _check_factors(A: Tensor, B: Tensor, in_features: int, out_features: int, device: torch.device) -> None:
    check_factor("A", A, (None, in_features), device)
    check_factor("B", B, (out_features, A.shape[0]), device)


def _seed(x: Tensor, dropout_p: float, training: bool, seed: Tensor | int | None) -> Tensor | None:
    """The mask's seed as an int64 tensor on x's device; None where nothing is dropped."""
    check_dropout(None, dropout_p, x.device)
    if not training or dropout_p == 0.0:
        return None
    if seed is None:
        # drawn on the device: no synchronisation, and activation checkpointing draws the same one again
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device=x.device)
    if not isinstance(seed, Tensor):
        return torch.tensor(seed, dtype=torch.int64, device=x.device)
    check_dropout(seed, dropout_p, x.device)
    return seed
