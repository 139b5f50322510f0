"""Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias in tiles; K is split where there are too few of them."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch

from ...compat.torch import current_cuda_device
from ...kernels.launch_config import LaunchConfig
from ...kernels.launch_table import launch_config
from ...kernels.lora_linear import lora_linear as kernel
from ...kernels.paths import STAGED, path_of
from ...ops.by_storage import weight_shape
from .launch import architecture, architecture_and_stream, launch
from .operands import dtype_name, factor, vector
from .replay import Replay, known, remember
from .split import split_in
from .staged import can_be_staged, decoded_weight, product, scaled_rows
from .weight import how_read, weight_arguments

Tensor = torch.Tensor

# tokens up to which a product is bound by reading codes
FEW = 16
# of a row's scales, in bytes: two programs then fetch a sector of them, and what they fetch is 1.03 of the least
HALF_A_SECTOR = 16


def again(
    x: Tensor,
    data: Tensor,
    scales: list[Tensor],
    layout: list[int],
    P: Tensor | None,
    B_hat: Tensor | None,
    c: Tensor | None,
    bias: Tensor | None,
) -> Tensor | None:
    """The result, where a call like this one was made before on the decode path; None where not."""
    if not may_be_known(x):
        return None
    weight = _known.get(id(data))
    if weight is None or weight.data() is not data or weight.layout != layout:
        return None
    tensors, addresses, key = described(x, data, scales, P, B_hat, c, bias)
    replay = weight.calls.get(key)
    if replay is None:
        return None
    y = x.new_empty((x.shape[0], weight.out_features))
    replay(addresses if x.is_cuda else tensors, [y])
    return y


def may_be_known(x: Tensor) -> bool:
    """Whether calls over this x are remembered: few tokens, on the current device (on another a launch needs more), and
    not captured by a CUDA graph: what is remembered counts arrivals where eager launches do.
    """
    if x.shape[0] > FEW:
        return False
    if not x.is_cuda:
        return True
    return x.get_device() == current_cuda_device() and not torch.cuda.is_current_stream_capturing()


class _Weight(NamedTuple):
    """What is known of calls over one weight, by `_described`'s key."""

    data: weakref.ref[Tensor]
    layout: list[int]
    out_features: int
    calls: dict[tuple[Any, ...], Replay]


# by the id of a weight's data
_known: dict[int, _Weight] = known()


def described(
    x: Tensor,
    data: Tensor,
    scales: list[Tensor],
    P: Tensor | None,
    B_hat: Tensor | None,
    c: Tensor | None,
    bias: Tensor | None,
) -> tuple[list[Tensor | None], list[int], tuple[Any, ...]]:
    """The tensors, where they are, and all that a launch over them depends on beside W's layout."""
    tensors = [x, data, *scales, P, B_hat, c, bias]
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    # a weight stays where it is; what comes anew with each call is told by its shape and how it is aligned
    return (
        tensors,
        addresses,
        (
            architecture_and_stream(x),
            *addresses[1:-4],
            _seen(x, addresses[0]),
            _seen(P, addresses[-4]),
            _seen(B_hat, addresses[-3]),
            _seen(c, addresses[-2]),
            _seen(bias, addresses[-1]),
        ),
    )


def _seen(tensor: Tensor | None, address: int) -> tuple[Any, ...] | None:
    if tensor is None:
        return None
    return tensor.get_device(), tensor.dtype, tensor.shape, tensor.is_contiguous(), address % 16


@torch.no_grad()
def lora_linear(
    x: Tensor,
    data: Tensor,
    scales: list[Tensor],
    layout: list[int],
    P: Tensor | None,
    B_hat: Tensor | None,
    c: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    tokens, in_features = x.shape
    out_features = weight_shape(data, layout)[0]
    arch = architecture(x.device)
    route = path_of("lora_linear", arch, tokens, out_features, in_features, 0 if P is None else P.shape[1])
    if route.path == STAGED and can_be_staged(x, layout):
        decoded = decoded_weight(data, scales, layout, c, x.dtype)
        H = None if B_hat is None else scaled_rows(B_hat, c).T
        return product(x, decoded, P, H, bias, None, 0.0, route.product, backward=False)
    y = x.new_empty((tokens, out_features))
    if not y.numel():
        return y
    weight = weight_arguments(data, scales, layout, arch, packed_for=x.dtype)
    config = whole_turns(
        launch_config(
            "lora_linear",
            arch,
            dtype_name(x),
            tokens,
            how_read(weight),
            N=out_features,
            K=in_features,
            rank=0 if P is None else P.shape[1],
        ),
        weight,
        in_features,
    )
    split = shared_among(x.device, config, weight, tokens, [out_features], in_features)
    arguments = {
        "x": x.contiguous(),
        "weight": weight,
        "p": factor(P),
        "b_hat": factor(B_hat),
        "c": vector(c),
        "bias": vector(bias),
        "y": y,
        **split,
        "M": tokens,
        "N": out_features,
        "K": in_features,
        "R": 0 if P is None else P.shape[1],
        "config": config,
    }
    if tokens > FEW:
        launch(x.device, ("y_ptr",), kernel, **arguments)
        return y
    started = launch(x.device, ("y_ptr",), kernel, **arguments)
    tensors, addresses, key = described(x, data, scales, P, B_hat, c, bias)
    kept = [weight["levels_ptr"], split["parts"], split["arrivals"]]
    replay = Replay.of(started, tensors, addresses[1:-4], [y], kept)
    if replay is not None:
        _remember(data, layout, key, replay, out_features)
    return y


def _remember(data: Tensor, layout: list[int], key: tuple[Any, ...], replay: Replay, out_features: int) -> None:
    weight = _known.get(id(data))
    if weight is None or weight.data() is not data or weight.layout != layout:
        weight = _Weight(weakref.ref(data), list(layout), out_features, {})
        remember(_known, id(data), weight)
    weight.calls[key] = replay


def shared_among(
    device: torch.device,
    config: LaunchConfig,
    weight: dict[str, Any],
    tokens: int,
    out_features: list[int],
    in_features: int,
) -> dict[str, Any]:
    """`split_in` of K for products of so many output features, all in one launch."""
    scales = weight["absmax_ptr"]
    return split_in(
        device,
        range_=in_features,
        turn=config["BLOCK_K"],
        tiles=-(-tokens // config["BLOCK_M"]) * sum(-(-N // config["BLOCK_N"]) for N in out_features),
        size=config["BLOCK_M"] * config["BLOCK_N"],
        span=HALF_A_SECTOR // scales.element_size() * weight["BLOCK_SIZE"] if weight["PACKED"] else 1,
    )


def whole_turns(config: LaunchConfig, weight: dict[str, Any], in_features: int) -> LaunchConfig:
    """BLOCK_K that divides K where rows have whole blocks: no turn of the loop has a tail."""
    turn = config["BLOCK_K"]
    while weight["PACKED"] and in_features % turn:
        turn //= 2
    return config.at_most(BLOCK_K=turn)
