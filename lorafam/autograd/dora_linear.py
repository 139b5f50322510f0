"""Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias, c = m / n (DoRA, arXiv 2402.09353); gradients for x, A, B, m, bias, where B̂ = B ∘
scale, and for n, dn = −dm m / n, where it isn't a constant (section 4.3: it is).

Saved beyond parameters and codes: x, P, the seed and Y itself, the very tensor returned, for dm = Σ G ∘ (Y − bias) / m.
Where Y was changed in place since, its version says so, and T = x Wᵀ + P B̂ᵀ is formed again: dm = Σ G ∘ T / n. In a
compiled graph no version tells; there T is saved instead, which nobody else can reach.

(Y − bias) / m is 0/0 where m = 0, and loses digits to the bias where |c| is small: its error is up to 1/|c| of eager's.
In 16 bits it loses them too where the bias is larger than the product. Those rows are recomputed from T.
"""

from __future__ import annotations

from typing import Any

import torch

from ..backends.undispatched import call
from ..compat.torch import has_no_value_now, saved_tensors_of
from ..ops.adapted import Adapted, Needs, Scale
from ..ops.by_storage import Storage
from ..ops.library import in_dtype
from . import plain
from .directions import backward, forward
from .remade_input import kept_of
from .scaled_factor import as_saved, scaled

Tensor = torch.Tensor

# below this |c| a bias makes dm from the saved output too inexact for the ratio rule (1.5 x eager)
WEAK_SCALE = 0.75
# the place of Y among the saved tensors
_KEPT = 10


class DoraLinearFunction(torch.autograd.Function):
    """x [M, K], A [r, K], B [N, r], m and n [N] → Y [M, N] in x's dtype."""

    @staticmethod
    def formula(
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scale: Scale,
        magnitude: Tensor,
        norm: Tensor,
        bias: Tensor | None,
        seed: Tensor | None,
        dropout_p: float,
        data: Tensor,
        layout: tuple[int, ...],
        *block_scales: Tensor,
    ) -> Tensor:
        """The forward in plain operations."""
        T = plain.frozen_product(x, Storage(data, [*block_scales], [*layout])) + plain.low_rank(
            x, A, B, scale, seed, dropout_p
        )
        y = magnitude / norm * T
        return in_dtype(y if bias is None else y + bias, x.dtype)

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scale: Scale,
        magnitude: Tensor,
        norm: Tensor,
        bias: Tensor | None,
        seed: Tensor | None,
        dropout_p: float,
        data: Tensor,
        layout: tuple[int, ...],
        *block_scales: Tensor,
    ) -> Tensor:
        c, weight = magnitude / norm, Storage(data, [*block_scales], [*layout])
        ctx.saves_product = torch.compiler.is_compiling()
        if ctx.saves_product:
            kept, P = forward(x, Adapted(A, B, scale, None, None, weight), seed, dropout_p)
            # not y.to(): torch 2.11 loses the gradient of a compiled Function whose last operation returns its input
            y = in_dtype(c * kept if bias is None else c * kept + bias, x.dtype)
        else:
            y, P = forward(x, Adapted(A, B, scale, c, bias, weight), seed, dropout_p)
            kept = y
        ctx.dropout_p, ctx.layout, ctx.version = dropout_p, layout, 0 if ctx.saves_product else y._version
        ctx.scale, saved_scale = as_saved(scale)
        ctx.input, saved = kept_of(x)
        ctx.save_for_backward(*saved, P, A, B, saved_scale, magnitude, norm, bias, seed, kept, data, *block_scales)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors if ctx.saves_product else saved_tensors_of(ctx, _KEPT)
        one, other, P, A, B, scale, magnitude, norm, bias, seed, kept, data, *block_scales = saved
        x = ctx.input.of(one, other)
        scale = ctx.scale if scale is None else scale
        if plain.is_differentiated_again(grad_y):
            inputs = (x, A, B, scale, magnitude, norm, bias, seed, ctx.dropout_p, data, ctx.layout, *block_scales)
            return plain.gradients(DoraLinearFunction.formula, inputs, (grad_y,), ctx.needs_input_grad)
        needs_x, needs_a, needs_b, needs_scale, needs_m, needs_n, needs_bias = ctx.needs_input_grad[:7]
        sums = needs_m or needs_n
        is_written = sums and not ctx.saves_product and kept._version != ctx.version
        c = magnitude / norm
        y, m, offset = (kept, norm, None) if ctx.saves_product else (kept, magnitude, bias)
        if not sums or is_written:
            y = m = offset = None
        adapted = Adapted(A, B, scale, c, offset, Storage(data, block_scales, [*ctx.layout]))
        needs = Needs(needs_x, needs_a, needs_b, needs_scale, needs_bias)
        dx, dA, dB, dscale, dm, dbias = backward(grad_y, x, P, adapted, seed, ctx.dropout_p, needs, y, m)
        if sums and not ctx.saves_product:
            weak = None if is_written else _weak_rows(c, magnitude, bias, kept)
            if weak is None or has_no_value_now(weak) or weak.any():
                product = call("lora_linear", x, *adapted.weight, P, scaled(B, scale), None, None)
                exact = _column_sums(grad_y, product) / norm
                dm = exact if weak is None else torch.where(weak, exact, dm)
        return (
            dx,
            dA if needs_a else None,
            dB,
            dscale,
            in_dtype(dm, magnitude.dtype) if needs_m else None,
            in_dtype(-dm * c, norm.dtype) if needs_n else None,
            dbias.to(bias.dtype) if needs_bias else None,
            None,
            None,
            None,
            None,
            *(None for _ in block_scales),
        )


def _weak_rows(c: Tensor, magnitude: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    """The rows [N] in which (Y − bias) / m has lost digits."""
    if bias is None:
        return magnitude == 0
    weak = c.abs() < WEAK_SCALE
    if y.dtype.itemsize < 4:
        weak = weak | (bias.abs() > (y - bias).float().square().mean(0).sqrt())
    return weak


def _column_sums(a: Tensor, b: Tensor) -> Tensor:
    """Σ over tokens of a ∘ b, in fp32 or wider."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return (a.to(dtype) * b.to(dtype)).sum(0)
