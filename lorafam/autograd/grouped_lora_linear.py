"""Y_i = x W_iᵀ + x A_iᵀ B̂_iᵀ + bias_i for several weights and one x, with the gradients of `lora_linear`.

All P_i = x A_iᵀ come from one pass over x, all dx_i are added up here. Saved beyond parameters and codes: x and the
P_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..backends.direct import call
from ..ops.by_storage import Storage, group_storages, joined
from ..ops.library import concatenated, in_dtype
from . import plain
from .lora_linear import LoraLinear
from .scaled_factor import Scale, as_saved, scaled, scaled_grads

Tensor = torch.Tensor


class Factors(NamedTuple):
    """The adapters of a group, one entry for each weight."""

    As: Sequence[Tensor]
    Bs: Sequence[Tensor]
    scales: Sequence[Scale]
    biases: Sequence[Tensor | None]


def grouped_forward(x: Tensor, factors: Factors, storages: Sequence[Storage]) -> tuple[list[Tensor], list[Tensor]]:
    """The Y_i and the P_i, nothing recorded."""
    As, Bs, scales, biases = factors
    P = call("lora_project", x, concatenated(As), None, 0.0)
    parts = list(P.split([A.shape[0] for A in As], 1))
    ups = [scaled(B, scale) for B, scale in zip(Bs, scales, strict=True)]
    ys = call("lora_linear_group", x, *joined(storages), parts, ups, list(biases))
    return ys, parts


class GroupedLoraLinear(torch.autograd.Function):
    """x [M, K], A_i [r_i, K], B_i [N_i, r_i] → every Y_i [M, N_i] in x's dtype; the weights are of one kind."""

    @staticmethod
    def formula(x: Tensor, layout: tuple[int, ...], count: int, *rest: Any) -> tuple[Tensor, ...]:
        """The forward in plain operations."""
        As, Bs, scales, biases, data = (rest[i * count : (i + 1) * count] for i in range(5))
        storages = group_storages(data, rest[5 * count :], layout)
        return tuple(
            LoraLinear.formula(x, A, B, scale, bias, None, 0.0, one.data, tuple(one.layout), *one.scales)
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
            return plain.gradients(GroupedLoraLinear.formula, inputs, grads, ctx.needs_input_grad)
        storages = group_storages(data, saved[6 * count :], ctx.layout)
        needs = [ctx.needs_input_grad[3 + i * count : 3 + (i + 1) * count] for i in range(4)]
        no_dora = (None, None, None, None)
        dx: Tensor | None = None
        dAs: list[Tensor | None] = [None] * count
        dBs, dscales, dbiases = dAs.copy(), dAs.copy(), dAs.copy()
        for i, grad_y in enumerate(grads):
            if grad_y is None:
                continue
            A, B, scale = As[i], Bs[i], scales[i]
            needs_a, needs_b, needs_scale, needs_bias = (need[i] for need in needs)
            Q, dA, dB_hat, _, dbias = call(
                "lora_factors_grad", grad_y, x, parts[i], scaled(B, scale), *no_dora, None, 0.0, needs_bias
            )
            if ctx.needs_input_grad[0]:
                own = call("lora_linear_grad", grad_y, *storages[i], None, Q, A, None, 0.0)
                dx = own if dx is None else dx.add_(own)
            dAs[i] = in_dtype(dA, A.dtype) if needs_a else None
            dBs[i], dscales[i] = scaled_grads(dB_hat, B, scale, needs_b, needs_scale)
            dbiases[i] = dbias.to(biases[i].dtype) if needs_bias else None
        frozen = [None] * (len(saved) - 5 * count)
        return dx, None, None, *dAs, *dBs, *dscales, *dbiases, *frozen
