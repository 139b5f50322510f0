"""Y_i = x W_iᵀ + x A_iᵀ B̂_iᵀ + bias_i for several weights and one x, with the gradients of `lora_linear`.

All dx_i are added up here. A direction is one piece where the CPU backend has it, else op by op, with all P_i = x A_iᵀ
from one pass over x. Saved beyond parameters and codes: x and the P_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..backends.undispatched import as_one, call, together
from ..ops.adapted import Adapted, Needs, Scale
from ..ops.by_storage import Storage, check_storage, group_storages, joined
from ..ops.checks import check_tokens
from ..ops.library import concatenated, in_dtype
from . import plain
from .lora_linear import LoraLinearFunction
from .scaled_factor import all_scaled, all_scaled_grads, as_saved, scaled_grads

Tensor = torch.Tensor


def group(
    As: Sequence[Tensor],
    Bs: Sequence[Tensor],
    scales: Sequence[Scale],
    biases: Sequence[Tensor | None],
    weights: Sequence[Storage],
) -> list[Adapted]:
    """The weights of a group with their adapters."""
    each = zip(As, Bs, scales, biases, weights, strict=True)
    return [Adapted(A, B, scale, None, bias, weight) for A, B, scale, bias, weight in each]


def grouped_forward(x: Tensor, parts: Sequence[Adapted]) -> tuple[list[Tensor], list[Tensor]]:
    """The Y_i and the P_i, nothing recorded."""
    whole = _in_one_piece("forward", x, parts)
    if whole is not None:
        check_tokens("x", x, parts[0].weight.shape[1], x.device)
        return whole.forward_group(x, parts)
    return as_one("group forward", _forward_by_ops, x, parts)


def _forward_by_ops(x: Tensor, parts: Sequence[Adapted]) -> tuple[list[Tensor], list[Tensor]]:
    P = call("lora_project", x, concatenated([part.A for part in parts]), None, 0.0)
    Ps = list(P.split([part.A.shape[0] for part in parts], 1))
    biases = [part.bias for part in parts]
    return call("lora_linear_group", x, *joined([part.weight for part in parts]), Ps, all_scaled(parts), biases), Ps


def _in_one_piece(direction: str, x: Tensor, parts: Sequence[Adapted], *others: Tensor) -> Any:
    """`numba_cpu.together` where it may compute the whole group, else None."""
    whole = together(x, parts, others)
    if whole is None or not all(whole.suits(x, part) and whole.is_own(direction, x, part.weight) for part in parts):
        return None
    for part in parts:
        check_storage(*part.weight)
    return whole


def _gradients(
    grads: Sequence[Tensor],
    x: Tensor,
    Ps: Sequence[Tensor],
    parts: Sequence[Adapted],
    needs: Sequence[Needs],
) -> tuple[Tensor | None, list[tuple[Any, ...]]]:
    """dx, and (dA, dB, dscale, dbias) of every weight."""
    whole = _in_one_piece("backward", x, parts, *grads, *Ps)
    if whole is None or any(grad.dtype != x.dtype for grad in grads):
        return as_one("group backward", _backward_by_ops, x, grads, Ps, parts, needs)
    for grad, part in zip(grads, parts, strict=True):
        check_tokens("grad_y", grad, part.weight.shape[0], x.device)
    dx, gradients = None, []
    for part, need, own in zip(parts, needs, whole.backward_group(grads, x, Ps, parts, needs), strict=True):
        dB, dscale = scaled_grads(own.dB, part.B, part.scale, need.B, True) if need.scale else (own.dB, None)
        gradients.append((own.dA, dB, dscale, own.sums))
        dx = _added(dx, own.dx)
    return dx, gradients


def _backward_by_ops(
    x: Tensor,
    grads: Sequence[Tensor],
    Ps: Sequence[Tensor],
    parts: Sequence[Adapted],
    needs: Sequence[Needs],
) -> tuple[Tensor | None, list[tuple[Any, ...]]]:
    total, downs, ups, sums = None, [], [], []
    for grad_y, P, part, B_hat, need in zip(grads, Ps, parts, all_scaled(parts), needs, strict=True):
        Q, dA, dB_hat, _, dbias = call(
            "lora_factors_grad", grad_y, x, P, B_hat, None, None, None, None, None, 0.0, need.bias
        )
        if need.x:
            total = _added(total, call("lora_linear_grad", grad_y, *part.weight, None, Q, part.A, None, 0.0))
        downs.append(in_dtype(dA, part.A.dtype))
        ups.append(dB_hat)
        sums.append(dbias)
    scaled = all_scaled_grads(ups, parts, [need.B for need in needs], [need.scale for need in needs])
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
        block_scales = rest[5 * count :]
        storages = group_storages(data, block_scales, layout)
        ys, Ps = grouped_forward(x, group(As, Bs, scales, biases, storages))
        ctx.layout, ctx.count = layout, count
        numbers, saved_scales = zip(*map(as_saved, scales), strict=True)
        ctx.numbers = numbers
        ctx.save_for_backward(x, *Ps, *As, *Bs, *saved_scales, *biases, *data, *block_scales)
        # an output that nobody uses costs nothing
        ctx.set_materialize_grads(False)
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        count = ctx.count
        x, *saved = ctx.saved_tensors
        Ps, As, Bs, scales, biases, data = (saved[i * count : (i + 1) * count] for i in range(6))
        scales = [number if scale is None else scale for number, scale in zip(ctx.numbers, scales, strict=True)]
        if plain.is_differentiated_again(*grads):
            inputs = (x, ctx.layout, count, *As, *Bs, *scales, *biases, *saved[5 * count :])
            return plain.gradients(GroupedLoraLinearFunction.formula, inputs, grads, ctx.needs_input_grad)
        storages = group_storages(data, saved[6 * count :], ctx.layout)
        parts = group(As, Bs, scales, biases, storages)
        needs_x, asked = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        needs = [Needs(needs_x, *asked[i : 4 * count : count]) for i in range(count)]
        used = [i for i, grad in enumerate(grads) if grad is not None]
        dx, gradients = _gradients(
            [grad for grad in grads if grad is not None],
            x,
            [Ps[i] for i in used],
            [parts[i] for i in used],
            [needs[i] for i in used],
        )
        dAs: list[Tensor | None] = [None] * count
        dBs, dscales, dbiases = dAs.copy(), dAs.copy(), dAs.copy()
        for i, (dA, dB, dscale, dbias) in zip(used, gradients, strict=True):
            dAs[i], dBs[i], dscales[i] = dA if needs[i].A else None, dB, dscale
            dbiases[i] = dbias.to(biases[i].dtype) if needs[i].bias else None
        frozen = [None] * (len(saved) - 5 * count)
        return dx, None, None, *dAs, *dBs, *dscales, *dbiases, *frozen
