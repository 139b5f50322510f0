"""‖w_j + b̂_j A‖ and ‖w_j‖² per output feature, fp32 [N]."""

from __future__ import annotations

import torch

from ...kernels.launch_table import launch_config
from ...kernels.row_norm import row_norm as kernel
from ...ops.by_storage import is_dense, weight_shape
from ...ops.row_norm import CANCELLATION, NORM_FLOOR
from .launch import architecture, launch
from .lora_project import project
from .operands import dtype_name, factor
from .weight import how_columns_are_read, weight_arguments

Tensor = torch.Tensor


@torch.no_grad()
def row_norm(
    data: Tensor, scales: list[Tensor], layout: list[int], A: Tensor, B_hat: Tensor, weight_squared: Tensor | None
) -> Tensor:
    a, b_hat = A.detach().float().contiguous(), factor(B_hat)
    return _norms(data, scales, layout, a, b_hat, project(a, a, None, None, 0.0), factor(weight_squared))


@torch.no_grad()
def squared_row_norm(data: Tensor, scales: list[Tensor], layout: list[int]) -> Tensor:
    return _norms(data, scales, layout, None, None, None, None)


def _norms(
    data: Tensor,
    scales: list[Tensor],
    layout: list[int],
    a: Tensor | None,
    b_hat: Tensor | None,
    gram: Tensor | None,
    weight_squared: Tensor | None,
) -> Tensor:
    out_features, in_features = weight_shape(data, layout)
    norms = data.new_empty(out_features, dtype=torch.float32)
    if out_features:
        arch = architecture(data.device)
        weight = weight_arguments(data, scales, layout, arch)
        dtype = dtype_name(data) if is_dense(layout) else "float32"
        launch(
            data.device,
            ("n_ptr",),
            kernel,
            weight=weight,
            a=a,
            b_hat=b_hat,
            gram=gram,
            weight_squared=weight_squared,
            n=norms,
            N=out_features,
            K=in_features,
            R=0 if a is None else a.shape[0],
            cancellation=CANCELLATION,
            floor=NORM_FLOOR,
            config=launch_config(
                "row_norm",
                arch,
                dtype,
                weight=how_columns_are_read(weight, in_features),
                N=out_features,
                K=in_features,
                rank=0 if a is None else a.shape[0],
            ),
        )
    return norms
