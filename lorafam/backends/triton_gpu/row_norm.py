"""‖w_j + b̂_j A‖ and ‖w_j‖² per output feature, fp32 [N]."""

from __future__ import annotations

import torch

from ...kernels.launch_table import launch_config
from ...kernels.paths import STAGED, path_of
from ...kernels.row_norm import row_norm as kernel
from ...ops.by_storage import NESTED_BLOCK_SIZE, Layout, Storage
from ...ops.row_norm import CANCELLATION, NORM_FLOOR
from .four_bit import dequantize_4bit
from .launch import architecture, launch
from .lora_linear import lora_linear
from .lora_project import project
from .operands import dtype_name, factor
from .weight import how_columns_are_read, weight_arguments

Tensor = torch.Tensor

# elements of W + B̂A at a time: 16 MB in fp32
_PANEL = 1 << 22


@torch.no_grad()
def row_norm(
    data: Tensor, scales: list[Tensor], layout: list[int], A: Tensor, B_hat: Tensor, weight_squared: Tensor | None
) -> Tensor:
    a, b_hat = A.detach().float().contiguous(), factor(B_hat)
    weight = Storage(data, scales, layout)
    out_features, in_features = weight.shape
    route = path_of("row_norm", architecture(data.device), 0, out_features, in_features, a.shape[0])
    if route.path == STAGED and (weight.is_dense or in_features % layout[2] == 0):
        return _norms_of_sums(weight, a, B_hat)
    return _norms(weight, a, b_hat, project(a, a, None, None, 0.0), factor(weight_squared))


@torch.no_grad()
def squared_row_norm(data: Tensor, scales: list[Tensor], layout: list[int]) -> Tensor:
    return _norms(Storage(data, scales, layout), None, None, None, None)


def _norms(
    storage: Storage,
    a: Tensor | None,
    b_hat: Tensor | None,
    gram: Tensor | None,
    weight_squared: Tensor | None,
) -> Tensor:
    data, (out_features, in_features) = storage.data, storage.shape
    norms = data.new_empty(out_features, dtype=torch.float32)
    if out_features:
        arch = architecture(data.device)
        weight = weight_arguments(storage, arch)
        dtype = dtype_name(data) if storage.is_dense else "float32"
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


def _norms_of_sums(weight: Storage, a: Tensor, B_hat: Tensor) -> Tensor:
    """‖w_j + b̂_j A‖ of W + B̂A itself, in panels of rows that stay in a cache; nothing cancels there.

    Rows of whole blocks, so that a panel of a 4-bit W is a weight of its own.
    """
    out_features, in_features = weight.shape
    norms = a.new_empty(out_features)
    # whole nested blocks of scales
    height = max(1, _PANEL // (in_features * NESTED_BLOCK_SIZE)) * NESTED_BLOCK_SIZE
    for first in range(0, out_features, height):
        rows = slice(first, min(first + height, out_features))
        adapted = lora_linear(B_hat[rows].detach().float(), a.T, [], [], None, None, None, None)
        adapted += _panel(weight, rows)
        torch.linalg.vector_norm(adapted, dim=1, out=norms[rows])
    return norms.clamp_min_(NORM_FLOOR)


def _panel(weight: Storage, rows: slice) -> Tensor:
    """W's rows in its dtype, or in fp32; `rows` start at whole nested blocks."""
    data, scales, layout = weight
    if weight.is_dense:
        return data[rows]
    shape = Layout(*layout)
    block = shape.in_features // shape.block_size

    def part(tensor: Tensor, each: int) -> Tensor:
        return tensor.reshape(-1)[rows.start * block // each : -(-rows.stop * block // each)]

    codes = data.reshape(-1)[rows.start * shape.in_features // 2 : rows.stop * shape.in_features // 2]
    if shape.nested_block_size:
        absmax, nested, *rest = scales
        scales = [part(absmax, 1), part(nested, shape.nested_block_size), *rest]
    else:
        scales = [part(scales[0], 1)]
    return dequantize_4bit(codes, scales, [rows.stop - rows.start, *layout[1:]], torch.float32)
