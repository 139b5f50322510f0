"""The 256 levels of the 8-bit dynamic data type (Dettmers et al., arXiv 2110.02861), for the scales of 4-bit blocks and
for an optimiser's states.

For i = 0 … 6: the 2^i midpoints of 2^i + 1 equally spaced points over [0.1, 1], times 10^(i-6), with both signs; and 0
and 1. Unsigned: twice as many points, without a sign. fp32 [256], ascending; the same bits as bitsandbytes'
`create_dynamic_map(signed)`.
"""

from __future__ import annotations

import functools

import torch

_DECADES = 7


@functools.cache
def dynamic_levels(device: torch.device, signed: bool = True) -> torch.Tensor:
    """The levels on `device`: one tensor, shared by all that use it there."""
    # made outside inference mode: autograd must be able to save it
    with torch.inference_mode(False):
        levels = [0.0, 1.0]
        for i in range(_DECADES):
            points = torch.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1, dtype=torch.float32, device="cpu")
            midpoints = 10.0 ** (i - _DECADES + 1) * ((points[:-1] + points[1:]) / 2)
            levels += [*midpoints.tolist(), *(-midpoints if signed else midpoints[:0]).tolist()]
        return torch.tensor(sorted(levels), dtype=torch.float32, device=device)
