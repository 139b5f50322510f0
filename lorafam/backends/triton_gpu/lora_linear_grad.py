"""dx = (G ∘ c) W + drop'(Q A) in G's dtype."""

from __future__ import annotations

import torch

from ...kernels.launch_table import launch_config
from ...kernels.lora_linear_grad import lora_linear_grad as kernel
from ...ops.by_storage import weight_shape
from .launch import architecture, launch
from .operands import dropout_arguments, dtype_name, factor, vector
from .weight import how_read, weight_arguments

Tensor = torch.Tensor


@torch.no_grad()
def lora_linear_grad(
    grad_y: Tensor,
    data: Tensor,
    scales: list[Tensor],
    layout: list[int],
    c: Tensor | None,
    Q: Tensor | None,
    A: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
) -> Tensor:
    tokens, out_features = grad_y.shape
    in_features = weight_shape(data, layout)[1]
    dx = grad_y.new_empty((tokens, in_features))
    if dx.numel():
        arch = architecture(grad_y.device)
        weight = weight_arguments(data, scales, layout, arch)
        launch(
            grad_y.device,
            ("dx_ptr",),
            kernel,
            grad_y=grad_y.contiguous(),
            weight=weight,
            c=vector(c),
            q=factor(Q),
            a=factor(A),
            seed=seed,
            dx=dx,
            M=tokens,
            N=out_features,
            K=in_features,
            R=0 if A is None else A.shape[0],
            dropout=dropout_arguments(seed, dropout_p),
            config=launch_config(
                "lora_linear_grad",
                arch,
                dtype_name(grad_y),
                tokens,
                how_read(weight),
                N=out_features,
                K=in_features,
                rank=0 if A is None else A.shape[0],
            ),
        )
    return dx
