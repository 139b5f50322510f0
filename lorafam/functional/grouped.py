"""Several adapters and one x: projections, rows that choose their adapter, experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import grouped_mm, pad

from ..autograd import GroupedLoraLinearFunction, LoraByRowFunction, applied, group, grouped_forward
from ..ops.by_storage import joined
from ..ops.checks import check_device, check_vector
from ..ops.library import accumulate_dtype, concatenated
from .arguments import Weight, check_factors, recorded, restored, storage_of, tokens_of
from .linear import lora_linear

Tensor = torch.Tensor

# bytes; rows of a grouped product's operands begin at multiples
_ALIGNED = 16


def grouped_lora_linear(
    x: Tensor,
    weights: Sequence[Weight] | Weight,
    As: Sequence[Tensor] | Tensor,
    Bs: Sequence[Tensor] | Tensor,
    scalings: Sequence[float | Tensor],
    biases: Sequence[Tensor | None] | Tensor | None = None,
    *,
    rows: Tensor | None = None,
) -> tuple[Tensor, ...] | Tensor:
    """Several adapters and one x, without dropout. What the groups are:

    Projections, without `rows`: Y_i = x W_iᵀ + s_i x A_iᵀ B_iᵀ + bias_i for every weight (q, k and v; gate and up), a
    tuple. x is read once for all low-rank parts; 4-bit weights of one block size are multiplied with few tokens in one
    call. Ranks may differ.

    Adapters, one weight [N, K] and `rows` [...] (int64, of x's leading shape, or of its first dimensions): every token
    with the adapter of its row, y = x Wᵀ + s_a x A_aᵀ B_aᵀ + bias, a = rows; where it is none of theirs (-1), the base
    alone. One product over the ranks of all.

    Experts, a dense weight [E, N, K] with A [E, r, K], B [E, N, r] and `rows` of x's leading shape: every token through
    the expert of its row, y = x W_eᵀ + s_e x A_eᵀ B_eᵀ. Tokens are sorted by expert, each of the three products is one
    grouped one. Rows must be experts: 0 to E - 1.

    A scaling is a number, or a value a rank [r].
    """
    if rows is not None and isinstance(weights, Tensor) and weights.ndim == 3:
        return _by_expert(x, weights, As, Bs, scalings, rows)
    if rows is not None:
        return _by_row(x, weights, As, Bs, scalings, biases, rows)  # type: ignore[arg-type]
    return _projections(x, weights, As, Bs, scalings, biases)  # type: ignore[arg-type]


def _projections(
    x: Tensor,
    weights: Sequence[Weight],
    As: Sequence[Tensor],
    Bs: Sequence[Tensor],
    scalings: Sequence[float | Tensor],
    biases: Sequence[Tensor | None] | None,
) -> tuple[Tensor, ...]:
    biases = [None] * len(weights) if biases is None else biases
    _check_counts({"weights": weights, "As": As, "Bs": Bs, "scalings": scalings, "biases": biases})
    storages = [storage_of(x, weight) for weight in weights]
    flat = tokens_of(x, storages[0])
    for storage, A, B, bias in zip(storages, As, Bs, biases, strict=True):
        out_features, in_features = storage.shape
        if in_features != flat.shape[1]:
            raise ValueError(f"weights: expected all [N, {flat.shape[1]}], got [{out_features}, {in_features}]")
        check_factors(A, B, in_features, out_features, flat.device)
        check_vector("bias", bias, out_features, flat.device)
    if len({len(storage.layout) for storage in storages}) > 1:
        each = zip(weights, As, Bs, scalings, biases, strict=True)
        return tuple(lora_linear(x, *member) for member in each)
    if recorded(flat, *As, *Bs, *scalings, *biases):
        data, scales, layout = joined(storages)
        count = len(storages)
        ys = applied(
            GroupedLoraLinearFunction, flat, tuple(layout), count, *As, *Bs, *scalings, *biases, *data, *scales
        )
    else:
        ys, _ = grouped_forward(flat, group(As, Bs, scalings, biases, storages))
    return tuple(restored(y, x) for y in ys)


def _by_row(
    x: Tensor,
    weight: Weight,
    As: Sequence[Tensor],
    Bs: Sequence[Tensor],
    scalings: Sequence[float | Tensor],
    bias: Tensor | None,
    rows: Tensor,
) -> Tensor:
    _check_counts({"As": As, "Bs": Bs, "scalings": scalings})
    storage = storage_of(x, weight)
    flat = tokens_of(x, storage)
    out_features, in_features = storage.shape
    for A, B in zip(As, Bs, strict=True):
        check_factors(A, B, in_features, out_features, flat.device)
    check_vector("bias", bias, out_features, flat.device)
    chosen = _rows_of(x, rows, flat.shape[0])
    ranks = [A.shape[0] for A in As]
    owner = torch.tensor([index for index, rank in enumerate(ranks) for _ in range(rank)], device=x.device)
    scale = torch.cat([_per_rank(s, rank, x.device) for s, rank in zip(scalings, ranks, strict=True)])
    mask = (chosen.unsqueeze(1) == owner) * scale
    A, B = concatenated(As), concatenated(Bs, 1)
    y = applied(LoraByRowFunction, flat, A, B, mask, bias, storage.data, tuple(storage.layout), *storage.scales)
    return restored(y, x)


def _by_expert(
    x: Tensor,
    weight: Tensor,
    As: Sequence[Tensor] | Tensor,
    Bs: Sequence[Tensor] | Tensor,
    scalings: Sequence[float | Tensor],
    rows: Tensor,
) -> Tensor:
    experts, out_features, in_features = weight.shape
    A = As if isinstance(As, Tensor) else torch.stack([*As])
    B = Bs if isinstance(Bs, Tensor) else torch.stack([*Bs])
    if A.ndim != 3 or A.shape[0] != experts or A.shape[2] != in_features:
        raise ValueError(f"As: expected [{experts}, r, {in_features}], got {list(A.shape)}")
    if B.shape != (experts, out_features, A.shape[1]):
        raise ValueError(f"Bs: expected [{experts}, {out_features}, {A.shape[1]}], got {list(B.shape)}")
    if len(scalings) != experts:
        raise ValueError(f"scalings: expected one for each of {experts} experts, got {len(scalings)}")
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(f"x: expected [..., {in_features}], got {list(x.shape)}")
    flat = x.reshape(-1, in_features)
    if not aligned(weight):
        raise ValueError(f"weights: expected rows of a multiple of {_ALIGNED} bytes, got {list(weight.shape)}")
    chosen = _rows_of(x, rows, flat.shape[0])
    scale = torch.stack([_per_rank(s, A.shape[1], x.device) for s in scalings])
    order, ends = sorted_by_expert(chosen, experts)
    y = expert_product(flat[order], weight.to(x.dtype), (A, B * scale.unsqueeze(1)), ends)
    return y[order.argsort()].view(*x.shape[:-1], out_features)


def aligned(weight: Tensor) -> bool:
    """Whether a grouped product takes [E, N, K], and its transpose."""
    return all(size * weight.element_size() % _ALIGNED == 0 for size in weight.shape[1:])


def sorted_by_expert(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """The order [T] in which tokens of one expert follow each other, and where each expert's end (int32 [experts])."""
    ends = (chosen.unsqueeze(1) == torch.arange(experts, device=chosen.device)).sum(0).cumsum(0)
    return chosen.argsort(stable=True), ends.to(torch.int32)


def expert_product(x: Tensor, weight: Tensor, factors: tuple[Tensor, Tensor] | None, ends: Tensor) -> Tensor:
    """x W_eᵀ + x A_eᵀ B̂_eᵀ of sorted tokens x [T, K]: W [E, N, K] of any strides, A [E, r, K], B̂ [E, N, r]; in x's
    dtype, the low-rank part in that of sums.
    """
    y = grouped_mm(x, weight.transpose(1, 2), offs=ends)
    if factors is None:
        return y
    dtype = accumulate_dtype(x.dtype)
    A, B_hat = (factor.to(dtype).contiguous() for factor in factors)
    # ranks of zeros up to what a grouped product takes
    more = -A.shape[1] % (_ALIGNED // 4)
    A, B_hat = pad(A, (0, 0, 0, more)), pad(B_hat, (0, more))
    P = grouped_mm(x.to(dtype), A.transpose(1, 2), offs=ends)
    return (y + grouped_mm(P, B_hat.transpose(1, 2), offs=ends)).to(x.dtype)


def _check_counts(several: dict[str, Sequence[object]]) -> None:
    counts = {name: len(values) for name, values in several.items()}
    if len(set(counts.values())) > 1 or not all(counts.values()):
        raise ValueError(f"{', '.join(counts)}: expected as many of each, at least one, got {counts}")


def _rows_of(x: Tensor, rows: Tensor, tokens: int) -> Tensor:
    """A value for each token [tokens]; `rows` has x's first dimensions."""
    if rows.dtype != torch.int64 or rows.shape != x.shape[: rows.ndim] or not 0 < rows.ndim < max(x.ndim, 2):
        raise ValueError(
            f"rows: expected int64 of the first dimensions of {list(x.shape[:-1])}, got {list(rows.shape)}"
        )
    check_device("rows", rows, x.device)
    more = x.ndim - 1 - rows.ndim
    return rows.reshape(*rows.shape, *(1,) * more).expand(x.shape[:-1]).reshape(tokens)


def _per_rank(scaling: float | Tensor, rank: int, device: torch.device) -> Tensor:
    return torch.as_tensor(scaling, dtype=torch.float32, device=device).expand(rank)
