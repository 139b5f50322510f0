"""How deep a call runs: a reader follows every frame of it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import pytest
import torch
from torch import nn

import lorafam

ROOTS = tuple(str(Path(lorafam.__file__).parents[1] / folder) for folder in ("lorafam", "kernels"))


def deepest(layer: nn.Module, x: torch.Tensor) -> list[tuple[str, str]]:
    """(file, function) of the deepest stack of lorafam's frames in one call."""
    found: list[tuple[str, str]] = []

    def look(frame: FrameType | None, event: str, _: object) -> None:
        stack = []
        while event == "call" and frame is not None:
            if frame.f_code.co_filename.startswith(ROOTS):
                stack.append((frame.f_code.co_filename, frame.f_code.co_name))
            frame = frame.f_back
        if len(stack) > len(found):
            found[:] = stack[::-1]

    sys.setprofile(look)
    try:
        layer(x)
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("tokens", [1, 128])
def test_a_warm_forward_is_nine_frames_deep_at_most(tokens: int) -> None:
    layer = lorafam.LoraLinear(lorafam.NF4Linear.from_linear(nn.Linear(256, 256)))
    x = torch.randn(tokens, 256, requires_grad=True)
    for _ in range(3):
        layer(x)
    chain = deepest(layer, x)
    assert 5 <= len(chain) <= 9, chain
    assert len({file for file, _ in chain}) <= 8, chain
