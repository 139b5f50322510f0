"""The 256 levels of the 8-bit dynamic data type (Dettmers et al., arXiv 2110.02861), for the scales of 4-bit blocks.

For i = 0 … 6: the 2^i midpoints of 2^i + 1 equally spaced points over [0.1, 1], times 10^(i-6), with both signs; and 0
and 1. fp32 [256], ascending; the same bits as bitsandbytes' `create_dynamic_map()`.
"""

from __future__ import annotations

import functools

import torch

_DECADES = 7


@functools.cache
def dynamic_levels(device: torch.device) -> torch.Tensor:
    """The levels on `device`: one tensor, shared by all weights there."""
    # made outside inference mode: autograd must be able to save it
    with torch.inference_mode(False):
        levels = [0.0, 1.0]
        for i in range(_DECADES):
            points = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32, device="cpu")
            midpoints = 10.0 ** (i - _DECADES + 1) * ((points[:-1] + points[1:]) / 2)
            levels += [*midpoints.tolist(), *(-midpoints).tolist()]
        return torch.tensor(sorted(levels), dtype=torch.float32, device=device)
