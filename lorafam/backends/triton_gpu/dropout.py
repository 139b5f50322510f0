"""drop(x) in x's dtype."""

from __future__ import annotations

import torch

from ...kernels.dropout import dropout as kernel
from ...kernels.launch_table import launch_config
from .launch import architecture, launch
from .operands import dropout_arguments, dtype_name

Tensor = torch.Tensor


@torch.no_grad()
def dropout(x: Tensor, seed: Tensor, dropout_p: float) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if out.numel():
        launch(
            x.device,
            ("out_ptr",),
            kernel,
            x=x.contiguous(),
            seed=seed,
            out=out,
            M=x.shape[0],
            K=x.shape[1],
            dropout=dropout_arguments(seed, dropout_p),
            config=launch_config("dropout", architecture(x.device), dtype_name(x)),
        )
    return out
