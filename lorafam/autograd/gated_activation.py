"""h = act(g) ∘ u, the middle of a gated MLP (SwiGLU and GeGLU, arXiv 2002.05202), of which g and u alone are saved.

autograd saves act(g) and u for the product and g for the activation, and the layer over h saves h. Here g and u are
saved once: act(g) is formed again in the backward, and so is h, for whoever takes it as input (`remade_input`). The
same operations in the same dtypes as without it, so the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import gelu, silu

from ..compat.torch import is_transformed
from . import plain
from .remade_input import remember

Tensor = torch.Tensor

# the activation by name, and its gradient: dL/dg of dL/da and g
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (silu, torch.ops.aten.silu_backward.default),
    "gelu": (gelu, torch.ops.aten.gelu_backward.default),
    "gelu_tanh": (
        lambda g: gelu(g, approximate="tanh"),
        lambda grad, g: torch.ops.aten.gelu_backward.default(grad, g, approximate="tanh"),
    ),
}


class GatedActivationFunction(torch.autograd.Function):
    """g and u of one shape → act(g) ∘ u."""

    @staticmethod
    def formula(g: Tensor, u: Tensor, kind: str) -> Tensor:
        """The forward in plain operations."""
        return ACTIVATIONS[kind][0](g) * u

    @staticmethod
    def forward(ctx: Any, g: Tensor, u: Tensor, kind: str) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(g, u)
        return GatedActivationFunction.formula(g, u, kind)

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        g, u = ctx.saved_tensors
        if plain.is_differentiated_again(grad_h):
            inputs = g, u, ctx.kind
            return plain.gradients(GatedActivationFunction.formula, inputs, (grad_h,), ctx.needs_input_grad)
        act, slope = ACTIVATIONS[ctx.kind]
        dg = slope(grad_h * u, g) if ctx.needs_input_grad[0] else None
        return dg, grad_h * act(g) if ctx.needs_input_grad[1] else None, None


def gated_activation(g: Tensor, u: Tensor, kind: str) -> Tensor:
    """act(g) ∘ u, `kind` one of `ACTIVATIONS`. A layer of lorafam's over it doesn't save it, but forms it again."""
    if not can_be_remade(g, u):
        return GatedActivationFunction.formula(g, u, kind)
    h = GatedActivationFunction.apply(g, u, kind)
    remember(h, GatedActivationFunction.formula, g, u, kind)
    return h


def can_be_remade(g: Tensor, u: Tensor) -> bool:
    """Whether autograd saves anything, and nothing else decides what: a compiler does that by itself."""
    if torch.compiler.is_compiling() or is_transformed() or not torch.is_grad_enabled():
        return False
    return g.shape == u.shape and g.dtype == u.dtype and (g.requires_grad or u.requires_grad)
