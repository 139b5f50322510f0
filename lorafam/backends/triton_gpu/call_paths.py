"""Which paths a call of an op takes: what the self-check tells apart, and switches off one at a time.

A path is an op, how its weight is read, the tokens' dtype, and the way it goes:

    lora_linear, lora_linear_grad   decode (few tokens), tiles, or staged, by cuBLAS or by `dense_linear`
    lora_linear_group               in one launch; else weight by weight, on the paths of `lora_linear`
    lora_factors_grad               in one pass over dY or in two
    row_norm                        fused or staged

Each has kernels, or configurations of them, that others don't. An op without such choices is one path for each dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...kernels.launch_table import DENSE, ELEMENTS, PACKED
from ...kernels.paths import STAGED, path_of
from ...ops.by_storage import Layout, is_dense, weight_shape
from ...ops.lora_linear_group import members
from .launch import architecture
from .lora_grad_pass import pass_config
from .lora_linear import FEW
from .lora_linear_group import in_one_launch
from .staged import can_be_staged

Tensor = torch.Tensor


def paths_of(op: str, arguments: Sequence[Any]) -> tuple[str, ...]:
    """The names of a call's paths, its own first."""
    first = arguments[0]
    if op == "lora_linear_group":
        return _of_group(first, *arguments[1:])
    if op in ("lora_linear", "lora_linear_grad"):
        _, data, _, layout = arguments[:4]
        low_rank = arguments[4] if op == "lora_linear" else arguments[5]
        rank = 0 if low_rank is None else low_rank.shape[1]
        return (product_path(op, first.shape[0], first.dtype, data, layout, rank),)
    if op == "lora_factors_grad":
        passes = "two passes" if pass_config(first, arguments[3].shape[1]) is None else "one pass"
        return (_named(op, _dtype(first.dtype), passes),)
    if op in ("row_norm", "squared_row_norm"):
        data, _, layout = arguments[:3]
        N, K = weight_shape(data, layout)
        rank = arguments[3].shape[0] if op == "row_norm" else 0
        route = path_of("row_norm", architecture(data.device), 0, N, K, rank).path if rank else "fused"
        return (_named(op, *_read(data, layout), route),)
    if op == "dequantize_4bit":
        return (_named(op, _dtype(arguments[3])),)
    if op in ("quantize_4bit", "lora_project", "dropout"):
        return (_named(op, _dtype(first.dtype)),)
    return (op,)


def product_path(op: str, tokens: int, dtype: torch.dtype, data: Tensor, layout: list[int], rank: int) -> str:
    """The path of `lora_linear` or `lora_linear_grad` over a weight: `tokens` of `dtype` through a rank (0: none)."""
    N, K = weight_shape(data, layout)
    route = path_of(op, architecture(data.device), tokens, N, K, rank)
    tokens_like = torch.empty((0, K if op == "lora_linear" else N), dtype=dtype, device="meta")
    if route.path == STAGED and can_be_staged(tokens_like, layout):
        way = f"staged by {route.product}"
    else:
        way = "decode" if tokens <= FEW else "tiles"
    # fp32 tokens aren't multiplied with rounded levels
    by_elements = op == "lora_linear" and dtype not in (torch.bfloat16, torch.float16)
    return _named(op, *_read(data, layout, by_elements=by_elements), _dtype(dtype), way)


def _of_group(x: Tensor, *rest: Any) -> tuple[str, ...]:
    each = members(*rest)
    if in_one_launch(x, each):
        return (_named("lora_linear_group", _dtype(x.dtype), "one launch"),)
    alone = [path for member in each for path in paths_of("lora_linear", (x, *member.arguments))]
    return (_named("lora_linear_group", "weight by weight"), *dict.fromkeys(alone))


def _read(data: Tensor, layout: list[int], *, by_elements: bool = False) -> tuple[str, ...]:
    """How W is read: dense; packed, where rows have whole blocks; by elements, else and where that is said."""
    if is_dense(layout):
        return (DENSE, _dtype(data.dtype))
    shape = Layout(*layout)
    return (ELEMENTS if by_elements or shape.in_features % shape.block_size else PACKED,)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _named(op: str, *parts: str) -> str:
    return ", ".join([op, *dict.fromkeys(parts)])
