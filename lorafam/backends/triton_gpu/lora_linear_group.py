"""Y_i = x W_iᵀ + P_i B̂_iᵀ + bias_i: in one launch for few tokens and two or three 4-bit weights that are alike, else a
launch a weight.
"""

from __future__ import annotations

import torch

from ...kernels.launch_table import PACKED, launch_config
from ...kernels.lora_linear_group import MEMBERS
from ...kernels.lora_linear_group import lora_linear_group as kernel
from ...ops.by_storage import Layout
from ...ops.lora_linear_group import Member, members
from .launch import architecture, launch
from .lora_linear import FEW, lora_linear, shared_among, whole_turns
from .operands import dtype_name, factor, vector
from .weight import how_read, weight_arguments

Tensor = torch.Tensor


@torch.no_grad()
def lora_linear_group(
    x: Tensor,
    data: list[Tensor],
    scales: list[Tensor],
    layout: list[int],
    P: list[Tensor],
    B_hat: list[Tensor],
    bias: list[Tensor | None],
) -> list[Tensor]:
    each = members(data, scales, layout, P, B_hat, bias)
    if in_one_launch(x, each):
        return _one_launch(x, each)
    return [lora_linear(x, *member.arguments) for member in each]


def in_one_launch(x: Tensor, each: list[Member]) -> bool:
    """Whether the weights are alike, their rows of whole blocks, but for the numbers of rows and ranks."""
    if not (2 <= len(each) <= MEMBERS and 0 < x.shape[0] <= FEW and x.dtype in (torch.bfloat16, torch.float16)):
        return False
    if any(member.weight.is_dense for member in each):
        return False
    layouts = [Layout(*member.weight.layout) for member in each]
    alike = {layout._replace(out_features=0) for layout in layouts}
    biases = {None if member.bias is None else member.bias.dtype for member in each}
    some = all(layout.out_features and member.P.shape[1] for layout, member in zip(layouts, each, strict=True))
    return len(alike) == len(biases) == 1 and some and x.shape[1] % layouts[0].block_size == 0


def _one_launch(x: Tensor, each: list[Member]) -> list[Tensor]:
    tokens, in_features = x.shape
    arch = architecture(x.device)
    weights = [weight_arguments(member.weight, arch, packed_for=x.dtype) for member in each]
    assert {how_read(weight) for weight in weights} == {PACKED}
    out_features = [member.weight.shape[0] for member in each]
    ranks = [member.P.shape[1] for member in each]
    config = whole_turns(
        launch_config(
            "lora_linear",
            arch,
            dtype_name(x),
            tokens,
            PACKED,
            N=sum(out_features),
            K=in_features,
            rank=max(ranks),
        ),
        weights[0],
        in_features,
    )
    split = shared_among(x.device, config, weights[0], tokens, out_features, in_features)
    ys = [x.new_empty((tokens, rows)) for rows in out_features]
    P, stride_p = _one_stride([member.P for member in each])
    launch(
        x.device,
        tuple(f"y_{i}_ptr" for i in range(len(each))),
        kernel,
        x=x.contiguous(),
        members=[
            {
                "weight": weight,
                "p": p,
                "b_hat": factor(member.B_hat),
                "bias": vector(member.bias),
                "y": y,
                "N": rows,
                "R": rank,
            }
            for weight, p, member, y, rows, rank in zip(weights, P, each, ys, out_features, ranks, strict=True)
        ],
        **split,
        M=tokens,
        K=in_features,
        stride_p=stride_p,
        config=config,
    )
    return ys


def _one_stride(P: list[Tensor]) -> tuple[list[Tensor], int]:
    """The P_i in fp32 with rows equally far apart, as columns of one matrix have them, and how far."""
    if all(p.dtype == torch.float32 and p.stride(1) == 1 and p.stride(0) == P[0].stride(0) for p in P):
        return [p.detach() for p in P], P[0].stride(0)
    ranks = [p.shape[1] for p in P]
    together = torch.cat([p.detach().float() for p in P], 1)
    return list(together.split(ranks, 1)), sum(ranks)
