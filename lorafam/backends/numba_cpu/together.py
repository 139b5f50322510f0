"""A whole direction of an adapted layer in one parallel region: what the ops do one after the other, with the same
bits. A dense weight goes this way where our kernels multiply it (`dense_product`).

    forward     P = drop(x) Aᵀ, B̂ = B ∘ scale, Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias
    backward    Q, dA, dB, Σ G, Σ G ∘ (Y − bias), dx

or of several layers that have the same x, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from ...ops.by_storage import is_dense
from ...ops.library import in_dtype
from . import dense_product, four_bit_product, self_check, team
from .dropout import dropped
from .factor_lines import Scale, scaled
from .factors import Sums, over_x, sums_over_g
from .four_bit import describe
from .huge_pages import new_matrix
from .processor import Processor, processor
from .project import project

Tensor = torch.Tensor


def suits(x: Tensor, data: Tensor, layout: Sequence[int], A: Tensor, *others: Scale | None) -> bool:
    """Whether a backward may go this way: some tokens in fp32 or bf16, all else fp32 and contiguous."""
    if x.dtype not in (torch.float32, torch.bfloat16) or not x.numel() or not A.shape[0]:
        return False
    dense = is_dense(layout)
    if dense and (data.dtype != x.dtype or not data.is_contiguous() or data.ndim != 2):
        return False
    return all(map(_is_read, (A, *others))) and self_check.together_trusted(x.dtype, not dense)


def suits_forward(x: Tensor, data: Tensor, layout: Sequence[int], A: Tensor, *others: Scale | None) -> bool:
    """Whether a forward may."""
    return is_own("forward", x, data, layout) and suits(x, data, layout, A, *others)


def is_own(direction: str, tokens: Tensor, data: Tensor, layout: Sequence[int]) -> bool:
    """Whether our own kernels multiply x by W ("forward") or G by it ("backward")."""
    if not is_dense(layout):
        return True
    return data.dtype == tokens.dtype and dense_product.is_own(direction, data, tokens.dtype, tokens.shape[0])


def _is_read(value: Scale | None) -> bool:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return True
    return value.dtype == torch.float32 and value.is_contiguous()


class Part(NamedTuple):
    """One adapter over its 4-bit weight: A [r, K], B [N, r] and what goes with them, as in `forward`."""

    A: Tensor
    B: Tensor
    scale: Scale
    bias: Tensor | None
    data: Tensor
    scales: Sequence[Tensor]
    layout: Sequence[int]


def forward(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scale: Scale,
    c: Tensor | None,
    bias: Tensor | None,
    data: Tensor,
    scales: Sequence[Tensor],
    layout: Sequence[int],
    seed: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """Y [M, N] in x's dtype and P = drop(x) Aᵀ [M, r]."""
    cpu, x, part = processor(), x.contiguous(), Part(A, B, scale, bias, data, scales, layout)
    y, P = _outputs(x, part)
    projected = x if seed is None else dropped(in_dtype(x, torch.float32), seed, dropout_p)
    key = ("forward", cpu, x.dtype, x.shape[0], *_kind(part), c is None, seed is None)
    # one tensor isn't to be found under two names
    other = None if seed is None else projected
    team.again(key, (x, P, y, *_tensors(part), c, other), lambda: _forward(x, projected, part, c, y, P, cpu))
    return y, P


def forward_group(x: Tensor, parts: Sequence[Part]) -> tuple[list[Tensor], list[Tensor]]:
    """Every part's Y and P, for one x without dropout."""
    cpu, x = processor(), x.contiguous()
    outputs = [_outputs(x, part) for part in parts]
    key = ("forward", cpu, x.dtype, x.shape[0], *map(_kind, parts))

    def make() -> None:
        for part, (y, P) in zip(parts, outputs, strict=True):
            _forward(x, x, part, None, y, P, cpu)

    found = (tensor for part, output in zip(parts, outputs, strict=True) for tensor in (*output, *_tensors(part)))
    tensors, same = _each_once((x, *found))
    team.again((key, same), tensors, make)
    ys, Ps = zip(*outputs, strict=True)
    return list(ys), list(Ps)


def _outputs(x: Tensor, part: Part) -> tuple[Tensor, Tensor]:
    tokens = x.shape[0]
    return new_matrix(x, tokens, part.B.shape[0]), part.A.new_empty(tokens, part.A.shape[0])


def _forward(x: Tensor, projected: Tensor, part: Part, c: Tensor | None, y: Tensor, P: Tensor, cpu: Processor) -> None:
    project(projected, part.A, P, cpu)
    B_hat = scaled(part.B, _factor(part.scale), cpu.lanes)
    if is_dense(part.layout):
        dense_product.forward_into(y, x, part.data, P, B_hat, c, part.bias, cpu)
        return
    weight = describe(part.data, list(part.scales), list(part.layout))
    four_bit_product.forward_into(y, x, weight, P, B_hat, c, part.bias, cpu)


class Gradients(NamedTuple):
    """Q [M, r] and dx [M, K] if asked for, dA [r, K], dB [N, r], or dB̂ where the scale has a gradient; Σ G [N] and
    Σ G ∘ (Y − bias) [N] where asked for.
    """

    Q: Tensor | None
    dx: Tensor | None
    dA: Tensor
    dB: Tensor
    sums: Tensor | None
    sums_y: Tensor | None


def backward(
    grad_y: Tensor,
    x: Tensor,
    P: Tensor,
    A: Tensor,
    B: Tensor,
    scale: Scale,
    c: Tensor | None,
    y: Tensor | None,
    bias: Tensor | None,
    data: Tensor,
    scales: Sequence[Tensor],
    layout: Sequence[int],
    *,
    seed: Tensor | None,
    dropout_p: float,
    needs_x: bool,
    needs_sums: bool,
    scales_db: bool,
) -> Gradients:
    """The gradients for grad_y [M, N] in x's dtype; Q instead of dx with dropout, which needs the mask, and where the
    platform multiplies.
    """
    by_op = seed is not None or not is_own("backward", grad_y, data, layout)
    if seed is not None:
        x = dropped(in_dtype(x, torch.float32), seed, dropout_p)
    cpu, x, grad_y = processor(), x.contiguous(), grad_y.contiguous()
    part, y = Part(A, B, scale, bias, data, scales, layout), None if y is None else y.contiguous()
    into = _gradients(grad_y, x, part, y, needs_x, needs_sums, by_op)
    asked = needs_x, needs_sums, scales_db, c is None, y is None, by_op, seed is None
    key = ("backward", cpu, grad_y.dtype, x.shape[0], *_kind(part), *asked)
    tensors = (grad_y, x, P, c, y, *into, *_tensors(part))
    team.again(key, tensors, lambda: _backward(grad_y, x, P, part, c, y, into, scales_db, cpu))
    return into


def backward_group(
    grads: Sequence[Tensor],
    x: Tensor,
    Ps: Sequence[Tensor],
    parts: Sequence[Part],
    *,
    needs_x: bool,
    needs_sums: Sequence[bool],
    scales_db: Sequence[bool],
) -> list[Gradients]:
    """The gradients of every part, each with a dx of its own."""
    cpu, x, grads = processor(), x.contiguous(), [grad.contiguous() for grad in grads]
    into = [
        _gradients(grad, x, part, None, needs_x, sums, by_op=False)
        for grad, part, sums in zip(grads, parts, needs_sums, strict=True)
    ]
    kinds = [_kind(part) for part in parts]
    key = ("backward", cpu, x.dtype, x.shape[0], *kinds, needs_x, *needs_sums, *scales_db)
    each = list(zip(grads, Ps, parts, into, scales_db, strict=True))

    def make() -> None:
        for grad, P, part, own, scales in each:
            _backward(grad, x, P, part, None, None, own, scales, cpu)

    found = (tensor for grad, P, part, own, _ in each for tensor in (grad, P, *own, *_tensors(part)))
    tensors, same = _each_once((x, *found))
    team.again((key, same), tensors, make)
    return into


def _gradients(
    grad_y: Tensor, x: Tensor, part: Part, y: Tensor | None, needs_x: bool, needs_sums: bool, by_op: bool
) -> Gradients:
    """Where they go."""
    A, B = part.A, part.B
    (tokens, columns), (features, rank) = x.shape, B.shape
    return Gradients(
        A.new_empty(tokens, rank) if needs_x and by_op else None,
        grad_y.new_empty(tokens, columns) if needs_x and not by_op else None,
        A.new_empty(rank, columns),
        B.new_empty(features, rank),
        A.new_zeros(features) if needs_sums else None,
        None if y is None else A.new_zeros(features),
    )


def _backward(
    grad_y: Tensor,
    x: Tensor,
    P: Tensor,
    part: Part,
    c: Tensor | None,
    y: Tensor | None,
    into: Gradients,
    scales_db: bool,
    cpu: Processor,
) -> None:
    tokens, rank = P.shape
    Q = team.kept_matrix("Q", tokens, rank) if into.Q is None else into.Q
    sums = Sums(Q, into.dB, into.sums, into.sums_y)
    lined = sums_over_g(grad_y, P, part.B, _factor(part.scale), c, y, part.bias, sums, scales_db, cpu)
    if into.dx is not None and is_dense(part.layout):
        dense_product.backward_into(into.dx, grad_y, part.data, c, Q, part.A, None, cpu)
    elif into.dx is not None:
        weight = describe(part.data, list(part.scales), list(part.layout))
        four_bit_product.backward_into(into.dx, grad_y, weight, c, Q, part.A, None, cpu)
    # beside dx, where there is one: it needs what that needs
    over_x(x, lined, into.dA, meets=into.dx is None)


def _kind(part: Part) -> tuple[object, ...]:
    """All that a part's kernels depend on but where its tensors lie."""
    factor = _factor(part.scale)
    weight = part.layout or (part.data.shape, part.data.dtype)
    return (part.A.shape[0], *weight, None if isinstance(factor, Tensor) else factor, part.bias is None)


def _tensors(part: Part) -> tuple[Tensor | None, ...]:
    by_rank = part.scale if isinstance(part.scale, Tensor) and part.scale.ndim else None
    return (part.A, part.B, part.data, *part.scales, by_rank, part.bias)


def _each_once(tensors: Iterable[Tensor | None]) -> tuple[list[Tensor], tuple[int, ...]]:
    """Those that begin at different places, and which of them every tensor is (-1: None): layers share their levels."""
    places: dict[int, int] = {}
    found: list[Tensor] = []
    which = []
    for tensor in tensors:
        if tensor is None:
            which.append(-1)
            continue
        at = tensor.data_ptr()
        if at not in places:
            places[at] = len(found)
            found.append(tensor)
        which.append(places[at])
    return found, tuple(which)


def _factor(scale: Scale) -> Scale:
    """One number for all ranks, or one value a rank [r]."""
    return scale if isinstance(scale, Tensor) and scale.ndim else float(scale)
