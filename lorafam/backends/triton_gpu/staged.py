"""The staged path: c ∘ W decoded into a scratch, then a dense product that starts from the low-rank part.

The scratch is a call's own, from torch's allocator, and counts in peak memory: one that calls shared would be
overwritten by another thread's between its two launches, or by a CUDA graph that is replayed on another stream.
"""

from __future__ import annotations

import torch

from ...kernels.dense_linear import dense_linear
from ...kernels.launch_table import launch_config
from ...kernels.nf4_dequantize import nf4_dequantize
from ...kernels.paths import CUBLAS
from ...ops.by_storage import Layout, Storage, is_dense
from .launch import architecture, launch
from .operands import aligned, dropout_arguments, dtype_name, factor, vector
from .split import multiprocessors
from .weight import weight_arguments

Tensor = torch.Tensor


def can_be_staged(x: Tensor, layout: list[int]) -> bool:
    """Whether the staged path takes this: 16-bit tokens, and a 4-bit weight whose rows have whole blocks."""
    if is_dense(layout) or x.dtype not in (torch.bfloat16, torch.float16):
        return False
    shape = Layout(*layout)
    # descriptors want rows of whole 16 bytes
    return shape.in_features % shape.block_size == 0 and x.shape[1] % 8 == 0


def scaled_rows(B_hat: Tensor, c: Tensor | None) -> Tensor:
    """c ∘ B̂ [N, r] in fp32."""
    B_hat = B_hat.detach().float()
    return B_hat if c is None else B_hat * c.detach().float()[:, None]


def decoded_weight(weight: Storage, c: Tensor | None, dtype: torch.dtype) -> Tensor:
    """c ∘ W [N, K] in a scratch."""
    device, (out_features, in_features) = weight.data.device, weight.shape
    decoded = torch.empty(weight.shape, dtype=dtype, device=device)
    arch = architecture(device)
    launch(
        device,
        ("decoded_ptr",),
        nf4_dequantize,
        weight=weight_arguments(weight, arch),
        c=vector(c),
        decoded=decoded,
        N=out_features,
        K=in_features,
        config=launch_config("nf4_dequantize", arch, dtype_name(decoded), N=out_features, K=in_features),
    )
    return decoded


def product(
    x: Tensor,
    weight: Tensor,
    F: Tensor | None,
    H: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    by: str,
    *,
    backward: bool,
) -> Tensor:
    """x Wᵀ + F H + bias, backward x W + drop'(F H), by cuBLAS or by `dense_linear`; W of `decoded_weight`."""
    x = aligned(x)
    features = weight.shape[1] if backward else weight.shape[0]
    y = x.new_empty((x.shape[0], features))
    if by != CUBLAS:
        _dense(x, weight, F, H, bias, seed, dropout_p, y, x.shape[1], backward)
        return y
    matrix = weight if backward else weight.T
    if F is None and bias is None:
        return torch.mm(x, matrix, out=y)
    if F is None and bias is not None:
        return torch.addmm(bias.to(x.dtype), x, matrix, out=y)
    _dense(x, weight, F, H, bias, seed, dropout_p, y, 0, backward)
    return y.addmm_(x, matrix)


def _dense(
    x: Tensor,
    weight: Tensor,
    F: Tensor | None,
    H: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    y: Tensor,
    in_features: int,
    backward: bool,
) -> None:
    launch(
        x.device,
        ("y_ptr",),
        dense_linear,
        x=x,
        w=weight,
        f=factor(F),
        h=H,
        seed=seed,
        bias=vector(bias),
        y=y,
        K=in_features,
        strides=(0, 0) if H is None else H.stride(),
        dropout=dropout_arguments(seed, dropout_p),
        programs=multiprocessors(x.device),
        backward=backward,
        config=launch_config(
            "dense_linear",
            architecture(x.device),
            dtype_name(x),
            x.shape[0],
            N=y.shape[1],
            K=in_features,
            rank=0 if F is None else F.shape[1],
        ),
    )
