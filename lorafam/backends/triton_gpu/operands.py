"""Operands as kernels take them: contiguous, factors in fp32, dropout as two scalars."""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor


def dtype_name(tensor: Tensor) -> str:
    """ "bfloat16", "float16" or "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def factor(tensor: Tensor | None) -> Tensor | None:
    """A low-rank factor or a projection, fp32 and contiguous: exact for every dtype but fp64."""
    return None if tensor is None else tensor.detach().float().contiguous()


def aligned(tensor: Tensor) -> Tensor:
    """Contiguous from a multiple of 16 bytes on, as tensor descriptors want it: a copy of what isn't."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def vector(tensor: Tensor | None) -> Tensor | None:
    """A vector per feature, in its own dtype."""
    return None if tensor is None else tensor.detach().contiguous()


def dropout_arguments(seed: Tensor | None, dropout_p: float) -> dict[str, Any]:
    """threshold = floor(p 2³²) as the int32 of the same bits, and 1/(1 − p)."""
    if seed is None:
        return {"threshold": 0, "keep_scale": 1.0}
    threshold = int(dropout_p * 2**32)
    return {"threshold": threshold - (threshold >> 31 << 32), "keep_scale": 1.0 / (1.0 - dropout_p)}
