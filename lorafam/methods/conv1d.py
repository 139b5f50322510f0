"""transformers' Conv1D, a linear layer whose weight is [K, N] (GPT-2's); transformers is never imported."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn


def is_conv1d(base: nn.Module) -> bool:
    """Whether `base` is a Conv1D."""
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and type(base) is library.Conv1D


def stands_for_conv1d(base: nn.Module) -> bool:
    """Whether it is one, or a 4-bit layer in the place of one: lorafam's, or as transformers loads it."""
    library = sys.modules.get("transformers.pytorch_utils")
    source = getattr(base, "source_cls", None)
    return is_conv1d(base) or (library is not None and isinstance(source, type) and issubclass(source, library.Conv1D))


def new_conv1d(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A frozen Conv1D of a weight [N, K]; it always has a bias."""
    library: Any = sys.modules["transformers.pytorch_utils"]
    layer: nn.Module = library.Conv1D(weight.shape[0], weight.shape[1])
    layer.weight = nn.Parameter(weight.T.contiguous(), requires_grad=False)
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias.detach()
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
