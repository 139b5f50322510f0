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

from ...ops.adapted import Adapted, Needs, Scale
from ...ops.by_storage import Storage
from ...ops.library import in_dtype
from . import dense_product, four_bit_product, parallel, self_check
from .dropout import dropped
from .factor_lines import scaled
from .factors import Sums, over_x, sums_over_g
from .four_bit import describe
from .huge_pages import new_matrix
from .processor import Processor, processor
from .project import project

Tensor = torch.Tensor


def suits(x: Tensor, adapted: Adapted, *others: Tensor) -> bool:
    """Whether a backward may go this way: some tokens in fp32 or bf16, all else fp32 and contiguous."""
    if x.dtype not in (torch.float32, torch.bfloat16) or not x.numel() or not adapted.A.shape[0]:
        return False
    data, _, layout = adapted.weight
    dense = not layout
    if dense and (data.dtype != x.dtype or not data.is_contiguous() or data.ndim != 2):
        return False
    return all(map(_is_read, (*adapted[:-1], *others))) and self_check.together_trusted(x.dtype, not dense)


def suits_forward(x: Tensor, adapted: Adapted) -> bool:
    """Whether a forward may."""
    return is_own("forward", x, adapted.weight) and suits(x, adapted)


def is_own(direction: str, tokens: Tensor, weight: Storage) -> bool:
    """Whether our own kernels multiply x by W ("forward") or G by it ("backward")."""
    if not weight.is_dense:
        return True
    data = weight.data
    return data.dtype == tokens.dtype and dense_product.is_own(direction, data, tokens.dtype, tokens.shape[0])


def _is_read(value: Scale | None) -> bool:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return True
    return value.dtype == torch.float32 and value.is_contiguous()


def forward(x: Tensor, adapted: Adapted, seed: Tensor | None, dropout_p: float) -> tuple[Tensor, Tensor]:
    """Y [M, N] in x's dtype and P = drop(x) Aᵀ [M, r]."""
    cpu, x = processor(), x.contiguous()
    y, P = _outputs(x, adapted)
    projected = x if seed is None else dropped(in_dtype(x, torch.float32), seed, dropout_p)
    key = ("forward", cpu, x.dtype, x.shape[0], *_kind(adapted), seed is None)
    # one tensor isn't to be found under two names
    other = None if seed is None else projected
    parallel.again(key, (x, P, y, *_tensors(adapted), other), lambda: _forward(x, projected, adapted, y, P, cpu))
    return y, P


def forward_group(x: Tensor, parts: Sequence[Adapted]) -> tuple[list[Tensor], list[Tensor]]:
    """Every part's Y and P, for one x without dropout."""
    cpu, x = processor(), x.contiguous()
    outputs = [_outputs(x, part) for part in parts]
    key = ("forward", cpu, x.dtype, x.shape[0], *map(_kind, parts))

    def make() -> None:
        for part, (y, P) in zip(parts, outputs, strict=True):
            _forward(x, x, part, y, P, cpu)

    found = (tensor for part, output in zip(parts, outputs, strict=True) for tensor in (*output, *_tensors(part)))
    tensors, same = _each_once((x, *found))
    parallel.again((key, same), tensors, make)
    ys, Ps = zip(*outputs, strict=True)
    return list(ys), list(Ps)


def _outputs(x: Tensor, part: Adapted) -> tuple[Tensor, Tensor]:
    tokens = x.shape[0]
    return new_matrix(x, tokens, part.B.shape[0]), part.A.new_empty(tokens, part.A.shape[0])


def _forward(x: Tensor, projected: Tensor, part: Adapted, y: Tensor, P: Tensor, cpu: Processor) -> None:
    project(projected, part.A, P, cpu)
    update = P, scaled(part.B, _factor(part.scale), cpu.lanes)
    if part.weight.is_dense:
        dense_product.forward_into(y, x, part.weight.data, *update, part.c, part.bias, cpu)
    else:
        four_bit_product.forward_into(y, x, describe(part.weight), *update, part.c, part.bias, cpu)


class RegionGradients(NamedTuple):
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
    adapted: Adapted,
    y: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    needs: Needs,
) -> RegionGradients:
    """The gradients for grad_y [M, N] in x's dtype; Q instead of dx with dropout, which needs the mask, and where the
    platform multiplies.
    """
    by_op = seed is not None or not is_own("backward", grad_y, adapted.weight)
    if seed is not None:
        x = dropped(in_dtype(x, torch.float32), seed, dropout_p)
    cpu, x, grad_y = processor(), x.contiguous(), grad_y.contiguous()
    y = None if y is None else y.contiguous()
    into = _gradients(grad_y, x, adapted, y, needs, by_op)
    asked = needs, y is None, by_op, seed is None
    key = ("backward", cpu, grad_y.dtype, x.shape[0], *_kind(adapted), *asked)
    tensors = (grad_y, x, P, y, *into, *_tensors(adapted))
    parallel.again(key, tensors, lambda: _backward(grad_y, x, P, adapted, y, into, needs, cpu))
    return into


def backward_group(
    grads: Sequence[Tensor], x: Tensor, Ps: Sequence[Tensor], parts: Sequence[Adapted], needs: Sequence[Needs]
) -> list[RegionGradients]:
    """The gradients of every part, each with a dx of its own."""
    cpu, x, grads = processor(), x.contiguous(), [grad.contiguous() for grad in grads]
    into = [
        _gradients(grad, x, part, None, need, by_op=False) for grad, part, need in zip(grads, parts, needs, strict=True)
    ]
    key = ("backward", cpu, x.dtype, x.shape[0], *map(_kind, parts), *needs)
    each = list(zip(grads, Ps, parts, into, needs, strict=True))

    def make() -> None:
        for grad, P, part, own, need in each:
            _backward(grad, x, P, part, None, own, need, cpu)

    every = (tensor for grad, P, part, own, _ in each for tensor in (grad, P, *own, *_tensors(part)))
    tensors, same = _each_once((x, *every))
    parallel.again((key, same), tensors, make)
    return into


def _gradients(
    grad_y: Tensor, x: Tensor, part: Adapted, y: Tensor | None, needs: Needs, by_op: bool
) -> RegionGradients:
    """Where they go."""
    A, B = part.A, part.B
    (tokens, columns), (features, rank) = x.shape, B.shape
    return RegionGradients(
        A.new_empty(tokens, rank) if needs.x and by_op else None,
        grad_y.new_empty(tokens, columns) if needs.x and not by_op else None,
        A.new_empty(rank, columns),
        B.new_empty(features, rank),
        A.new_zeros(features) if needs.bias else None,
        None if y is None else A.new_zeros(features),
    )


def _backward(
    grad_y: Tensor,
    x: Tensor,
    P: Tensor,
    part: Adapted,
    y: Tensor | None,
    into: RegionGradients,
    needs: Needs,
    cpu: Processor,
) -> None:
    tokens, rank = P.shape
    Q = parallel.kept_matrix("Q", tokens, rank) if into.Q is None else into.Q
    sums = Sums(Q, into.dB, into.sums, into.sums_y)
    lined = sums_over_g(grad_y, P, part.B, _factor(part.scale), part.c, y, part.bias, sums, not needs.scale, cpu)
    if into.dx is not None and part.weight.is_dense:
        dense_product.backward_into(into.dx, grad_y, part.weight.data, part.c, Q, part.A, None, cpu)
    elif into.dx is not None:
        four_bit_product.backward_into(into.dx, grad_y, describe(part.weight), part.c, Q, part.A, None, cpu)
    # beside dx, where there is one: it needs what that needs
    over_x(x, lined, into.dA, meets=into.dx is None)


def _kind(part: Adapted) -> tuple[object, ...]:
    """All that a part's kernels depend on but where its tensors lie."""
    data, _, layout = part.weight
    factor = _factor(part.scale)
    weight = layout or (data.shape, data.dtype)
    return (part.A.shape[0], *weight, None if isinstance(factor, Tensor) else factor, part.c is None, part.bias is None)


def _tensors(part: Adapted) -> tuple[Tensor | None, ...]:
    data, scales, _ = part.weight
    by_rank = part.scale if isinstance(part.scale, Tensor) and part.scale.ndim else None
    return (part.A, part.B, data, *scales, by_rank, part.c, part.bias)


def _each_once(tensors: Iterable[Tensor | None]) -> tuple[list[Tensor], tuple[int, ...]]:
    """Those that begin at different places, and which of them every tensor is (-1: None): layers share their levels."""
    places: dict[int, int] = {}
    once: list[Tensor] = []
    which = []
    for tensor in tensors:
        if tensor is None:
            which.append(-1)
            continue
        at = tensor.data_ptr()
        if at not in places:
            places[at] = len(once)
            once.append(tensor)
        which.append(places[at])
    return once, tuple(which)


def _factor(scale: Scale) -> Scale:
    """One number for all ranks, or one value a rank [r]."""
    return scale if isinstance(scale, Tensor) and scale.ndim else float(scale)
