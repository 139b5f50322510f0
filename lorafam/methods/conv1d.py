"""transformers' Conv1D, a linear layer whose weight is [K, N] (GPT-2's); transformers is never imported."""

from __future__ import annotations

import sys

from torch import nn


def is_conv1d(base: nn.Module) -> bool:
    """Whether `base` is a Conv1D."""
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and type(base) is library.Conv1D
