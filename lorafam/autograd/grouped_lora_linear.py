"""Y_i = x W_iᵀ + x A_iᵀ B̂_iᵀ + bias_i for several weights and one x, with the gradients of `lora_linear`.

All dx_i are added up here. A direction is one piece where the CPU backend has it, else op by op, with all P_i = x A_iᵀ
from one pass over x. Saved beyond parameters and codes: x and the P_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..backends.direct import as_one, call, together
from ..ops.by_storage import Storage, check_storage, group_storages, joined, weight_shape
from ..ops.checks import check_tokens
from ..ops.library import concatenated, in_dtype
from . import plain
from .lora_linear import LoraLinearFunction
from .scaled_factor import Scale, all_scaled, all_scaled_grads, as_saved, scaled_grads

Tensor = torch.Tensor


class Factors(NamedTuple):
    """The adapters of a group, one entry for each weight."""

    As: Sequence[Tensor]
    Bs: Sequence[Tensor]
    scales: Sequence[Scale]
    biases: Sequence[Tensor | None]


def grouped_forward(x: Tensor, factors: Factors, storages: Sequence[Storage]) -> tuple[list[Tensor], list[Tensor]]:
    """The Y_i and the P_i, nothing recorded."""
    whole = _in_one_piece("forward", x, factors, storages)
    if whole is not None:
        check_tokens("x", x, weight_shape(storages[0].data, storages[0].layout)[1], x.device)
        return whole.forward_group(x, _parts(whole, factors, storages))
    return as_one("group forward", _forward_by_ops, x, factors, storages)


def _forward_by_ops(x: Tensor, factors: Factors, storages: Sequence[Storage]) -> tuple[list[Tensor], list[Tensor]]:
    As, Bs, scales, biases = factors
    P = call("lora_project", x, concatenated(As), None, 0.0)
    parts = list(P.split([A.shape[0] for A in As], 1))
    ys = call("lora_linear_group", x, *joined(storages), parts, all_scaled(Bs, scales), list(biases))
    return ys, parts


def _in_one_piece(direction: str, x: Tensor, factors: Factors, storages: Sequence[Storage], *others: Tensor) -> Any:
    """`numba_cpu.together` where it may compute the whole group, else None."""
    every = [*factors.As, *factors.Bs, *factors.biases, *(s for s in factors.scales if isinstance(s, Tensor))]
    own = [tensor for data, scales, _ in storages for tensor in (data, *scales)]
    whole = together(x, *every, *own, *others)
    data, _, layout = storages[0]
    if whole is None or not whole.suits(x, data, layout, factors.As[0], *every):
        return None
    if not all(whole.is_own(direction, x, data, layout) for data, _, layout in storages):
        return None
    if not all(A.shape[0] for A in factors.As):
        return None
    for one in storages:
        check_storage(*one)
    return whole


def _parts(whole: Any, factors: Factors, storages: Sequence[Storage]) -> list[Any]:
    return [whole.Part(*own, *one) for *own, one in zip(*factors, storages, strict=True)]


class Needs(NamedTuple):
    """Whether a weight's own inputs have a gradient."""

    A: bool
    B: bool
    scale: bool
    bias: bool


def _gradients(
    grads: Sequence[Tensor],
    x: Tensor,
    Ps: Sequence[Tensor],
    factors: Factors,
    storages: Sequence[Storage],
    needs_x: bool,
    needs: Sequence[Needs],
) -> tuple[Tensor | None, list[tuple[Any, ...]]]:
    """dx, and (dA, dB, dscale, dbias) of every weight."""
    whole = _in_one_piece("backward", x, factors, storages, *grads, *Ps)
    if whole is not None and all(grad.dtype == x.dtype for grad in grads):
        for grad, one in zip(grads, storages, strict=True):
            check_tokens("grad_y", grad, weight_shape(one.data, one.layout)[0], x.device)
        asked = [need.bias for need in needs], [not need.scale for need in needs]
        found = whole.backward_group(
            grads, x, Ps, _parts(whole, factors, storages), needs_x=needs_x, needs_sums=asked[0], scales_db=asked[1]
        )
        every = []
        for B, scale, need, own in zip(factors.Bs, factors.scales, needs, found, strict=True):
            dB, dscale = scaled_grads(own.dB, B, scale, need.B, True) if need.scale else (own.dB, None)
            every.append((own.dA, dB, dscale, own.sums))
        dx = None
        for own in found:
            dx = _added(dx, own.dx)
        return dx, every
    return as_one("group backward", _backward_by_ops, x, grads, Ps, factors, storages, needs_x, needs)


def _backward_by_ops(
    x: Tensor,
    grads: Sequence[Tensor],
    Ps: Sequence[Tensor],
    factors: Factors,
    storages: Sequence[Storage],
    needs_x: bool,
    needs: Sequence[Needs],
) -> tuple[Tensor | None, list[tuple[Any, ...]]]:
    ups = all_scaled(factors.Bs, factors.scales)
    total, downs, grads_up, sums = None, [], [], []
    for grad_y, P, A, B_hat, storage, need in zip(grads, Ps, factors.As, ups, storages, needs, strict=True):
        Q, dA, dB_hat, _, dbias = call(
            "lora_factors_grad", grad_y, x, P, B_hat, None, None, None, None, None, 0.0, need.bias
        )
        if needs_x:
            data, scales, layout = storage
            dx = call("lora_linear_grad", grad_y, data, scales, layout, None, Q, A, None, 0.0)
            total = _added(total, dx)
        downs.append(in_dtype(dA, A.dtype))
        grads_up.append(dB_hat)
        sums.append(dbias)
    needed = [need.B for need in needs], [need.scale for need in needs]
    scaled = all_scaled_grads(grads_up, factors.Bs, factors.scales, *needed)
    return total, [(dA, *of_b, dbias) for dA, of_b, dbias in zip(downs, scaled, sums, strict=True)]


def _added(total: Tensor | None, dx: Tensor | None) -> Tensor | None:
    """In `total`, where there is one."""
    return dx if total is None or dx is None else total.add_(dx)


class GroupedLoraLinearFunction(torch.autograd.Function):
    """x [M, K], A_i [r_i, K], B_i [N_i, r_i] → every Y_i [M, N_i] in x's dtype; the weights are of one kind."""

    @staticmethod
    def formula(x: Tensor, layout: tuple[int, ...], count: int, *rest: Any) -> tuple[Tensor, ...]:
        """The forward in plain operations."""
        As, Bs, scales, biases, data = (rest[i * count : (i + 1) * count] for i in range(5))
        storages = group_storages(data, rest[5 * count :], layout)
        return tuple(
            LoraLinearFunction.formula(x, A, B, scale, bias, None, 0.0, one.data, tuple(one.layout), *one.scales)
            for A, B, scale, bias, one in zip(As, Bs, scales, biases, storages, strict=True)
        )

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: tuple[int, ...], count: int, *rest: Any) -> tuple[Tensor, ...]:
        As, Bs, scales, biases, data = (rest[i * count : (i + 1) * count] for i in range(5))
        weight_scales = rest[5 * count :]
        storages = group_storages(data, weight_scales, layout)
        ys, parts = grouped_forward(x, Factors(As, Bs, scales, biases), storages)
        ctx.layout, ctx.count = layout, count
        numbers, saved_scales = zip(*map(as_saved, scales), strict=True)
        ctx.numbers = numbers
        ctx.save_for_backward(x, *parts, *As, *Bs, *saved_scales, *biases, *data, *weight_scales)
        # an output that nobody uses costs nothing
        ctx.set_materialize_grads(False)
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        count = ctx.count
        x, *saved = ctx.saved_tensors
        parts, As, Bs, scales, biases, data = (saved[i * count : (i + 1) * count] for i in range(6))
        scales = [number if scale is None else scale for number, scale in zip(ctx.numbers, scales, strict=True)]
        if plain.is_differentiated_again(*grads):
            inputs = (x, ctx.layout, count, *As, *Bs, *scales, *biases, *saved[5 * count :])
            return plain.gradients(GroupedLoraLinearFunction.formula, inputs, grads, ctx.needs_input_grad)
        storages = group_storages(data, saved[6 * count :], ctx.layout)
        needs = [ctx.needs_input_grad[3 + i * count : 3 + (i + 1) * count] for i in range(4)]
        used = [i for i, grad in enumerate(grads) if grad is not None]
        dx, found = _gradients(
            [grad for grad in grads if grad is not None],
            x,
            [parts[i] for i in used],
            Factors(*([each[i] for i in used] for each in (As, Bs, scales, biases))),
            [storages[i] for i in used],
            ctx.needs_input_grad[0],
            [Needs(*(need[i] for need in needs)) for i in used],
        )
        dAs: list[Tensor | None] = [None] * count
        dBs, dscales, dbiases = dAs.copy(), dAs.copy(), dAs.copy()
        for i, (dA, dB, dscale, dbias) in zip(used, found, strict=True):
            dAs[i], dBs[i], dscales[i] = dA if needs[0][i] else None, dB, dscale
            dbiases[i] = dbias.to(biases[i].dtype) if needs[3][i] else None
        frozen = [None] * (len(saved) - 5 * count)
        return dx, None, None, *dAs, *dBs, *dscales, *dbiases, *frozen
