"""Y_i = x W_iᵀ + P_i B̂_iᵀ + bias_i: in one launch for few tokens and two or three 4-bit weights that are alike, else a
launch a weight.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch

from ...kernels.launch_table import PACKED, launch_config
from ...kernels.lora_linear_group import MEMBERS
from ...kernels.lora_linear_group import lora_linear_group as kernel
from ...ops.by_storage import Layout, is_dense, weight_shape
from ...ops.lora_linear_group import members
from .launch import architecture, launch
from .lora_linear import FEW, described, lora_linear, may_be_known, shared_among, whole_turns
from .lora_linear import again as again_alone
from .operands import dtype_name, factor, vector
from .replay import Replay, known, remember
from .weight import how_read, weight_arguments

Tensor = torch.Tensor
Member = tuple[Tensor, list[Tensor], list[int], Tensor, Tensor, None, Tensor | None]


def again(
    x: Tensor,
    data: list[Tensor],
    scales: list[Tensor],
    layout: list[int],
    P: list[Tensor],
    B_hat: list[Tensor],
    bias: list[Tensor | None],
) -> list[Tensor] | None:
    """The results, where a call like this one was made before in one launch; None where not."""
    if not may_be_known(x):
        return None
    group = _known.get(tuple(map(id, data)))
    if group is None or not group.of(data, layout):
        return None
    tensors, addresses, _, key = _described(x, list(members(data, scales, layout, P, B_hat, bias)))
    replay = group.calls.get(key)
    if replay is None:
        return None
    ys = [x.new_empty((x.shape[0], out_features)) for out_features in group.out_features]
    replay(addresses if x.is_cuda else tensors, ys)
    return ys


class _Group(NamedTuple):
    """What is known of calls over some weights, by `_described`'s key."""

    data: list[weakref.ref[Tensor]]
    layout: list[int]
    out_features: list[int]
    calls: dict[tuple[Any, ...], Replay]

    def of(self, data: list[Tensor], layout: list[int]) -> bool:
        same = all(before() is own for before, own in zip(self.data, data, strict=True))
        return same and self.layout == layout


# by the ids of the weights' data
_known: dict[tuple[int, ...], _Group] = known()


def _described(x: Tensor, each: list[Member]) -> tuple[list[Tensor | None], list[int], list[int], tuple[Any, ...]]:
    """The tensors, where they are, which of these addresses are the weights', and all that a launch depends on beside
    the layout.
    """
    tensors: list[Tensor | None] = []
    addresses: list[int] = []
    fixed: list[int] = []
    keys: list[Any] = []
    for data, scales, _, P, B_hat, c, bias in each:
        own, at, key = described(x, data, scales, P, B_hat, c, bias)
        tensors += own
        addresses += at
        fixed += at[1:-4]
        keys.append((key, P.stride()))
    return tensors, addresses, [*fixed, addresses[0]], tuple(keys)


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
    each: list[Member] = list(members(data, scales, layout, P, B_hat, bias))
    if in_one_launch(x, each):
        return _one_launch(x, each, layout)
    results = []
    for member in each:
        y = again_alone(x, *member)
        results.append(lora_linear(x, *member) if y is None else y)
    return results


def in_one_launch(x: Tensor, each: list[Member]) -> bool:
    """Whether the weights are alike, their rows of whole blocks, but for the numbers of rows and ranks."""
    if not (2 <= len(each) <= MEMBERS and 0 < x.shape[0] <= FEW and x.dtype in (torch.bfloat16, torch.float16)):
        return False
    if any(is_dense(member[2]) for member in each):
        return False
    layouts = [Layout(*member[2]) for member in each]
    alike = {layout._replace(out_features=0) for layout in layouts}
    biases = {None if member[6] is None else member[6].dtype for member in each}
    some = all(layout.out_features and member[3].shape[1] for layout, member in zip(layouts, each, strict=True))
    return len(alike) == len(biases) == 1 and some and x.shape[1] % layouts[0].block_size == 0


def _one_launch(x: Tensor, each: list[Member], layout: list[int]) -> list[Tensor]:
    tokens, in_features = x.shape
    arch = architecture(x.device)
    weights = [weight_arguments(*member[:3], arch, packed_for=x.dtype) for member in each]
    assert {how_read(weight) for weight in weights} == {PACKED}
    out_features = [weight_shape(member[0], member[2])[0] for member in each]
    ranks = [member[3].shape[1] for member in each]
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
    P, stride_p = _one_stride([member[3] for member in each])
    started = launch(
        x.device,
        tuple(f"y_{i}_ptr" for i in range(len(each))),
        kernel,
        x=x.contiguous(),
        members=[
            {
                "weight": weight,
                "p": p,
                "b_hat": factor(member[4]),
                "bias": vector(member[6]),
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
    tensors, _, fixed, key = _described(x, each)
    kept = [weights[0]["levels_ptr"], split["parts"], split["arrivals"]]
    replay = Replay.of(started, tensors, fixed, ys, kept)
    if replay is not None:
        _remember([member[0] for member in each], layout, key, replay, out_features)
    return ys


def _remember(
    data: list[Tensor], layout: list[int], key: tuple[Any, ...], replay: Replay, out_features: list[int]
) -> None:
    group = _known.get(tuple(map(id, data)))
    if group is None or not group.of(data, layout):
        group = _Group([weakref.ref(own) for own in data], list(layout), out_features, {})
        remember(_known, tuple(map(id, data)), group)
    group.calls[key] = replay


def _one_stride(P: list[Tensor]) -> tuple[list[Tensor], int]:
    """The P_i in fp32 with rows equally far apart, as columns of one matrix have them, and how far."""
    if all(p.dtype == torch.float32 and p.stride(1) == 1 and p.stride(0) == P[0].stride(0) for p in P):
        return [p.detach() for p in P], P[0].stride(0)
    ranks = [p.shape[1] for p in P]
    together = torch.cat([p.detach().float() for p in P], 1)
    return list(together.split(ranks, 1)), sum(ranks)
