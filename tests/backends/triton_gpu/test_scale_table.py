"""Scales through the table in shared memory: rows, spans and shares that begin and end anywhere among blocks, sectors
and nested blocks. Every block's scale differs, and some programs have spans of fewer blocks than the table.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
import lorafam
from lorafam import reference
from tests.conftest import INTERPRETING, need_ptxsim
from tests.tolerances import assert_as_good_as_eager

if not INTERPRETING:
    from lorafam.backends.triton_gpu import split
    from lorafam.backends.triton_gpu.lora_linear import lora_linear
    from lorafam.inspect.every_kernel import configuration
    from lorafam.inspect.traffic import count

pytestmark = pytest.mark.skipif(INTERPRETING, reason="of compiled code only: the interpreter has no table")

ROWS = 80


class Case:
    """A weight's columns and storage, a program's share of them in whole turns (None: all), and the table's span and
    alignment that become of it.
    """

    def __init__(self, K: int, share: int | None, span: int, aligned: int, **stored: Any) -> None:
        self.K, self.share, self.span, self.aligned, self.stored = K, share, span, aligned, stored

    def __repr__(self) -> str:
        return "-".join(map(str, (self.K, self.share, *self.stored.values())))


CASES = [
    Case(2048, None, 32, 32),  # a row is a span
    Case(1024, None, 16, 16),
    Case(2112, None, 32, 1),  # 33 blocks a row: rows begin anywhere, the last span is one block
    Case(2816, 1280, 32, 4),  # the second program begins in the middle of a sector
    Case(1536, 512, 8, 8),
    Case(64 * 20, None, 32, 4),  # 20 of a span's 32 blocks; nested blocks end within rows
    Case(64, None, 1, 1),
    Case(4096, None, 32, 32, block_size=128),
    Case(4096, 2048, 1, 1, block_size=4096),  # a share is half a block
    Case(8192, None, 2, 2, block_size=4096),
    Case(3072, 1280, 2, 1, block_size=512),  # two and a half: the third program begins with the sixth
    Case(1280, 768, 16, 4, double_quant=False),
    Case(2048, 1024, 16, 16, double_quant=False),
    Case(2112, None, 32, 1, double_quant=False),
    Case(704, None, 16, 1, quant_type="fp4"),
]


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.simulated
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("tokens", [3, 64])
def test_wherever_spans_begin_and_end(
    case: Case, architecture: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_ptxsim()
    monkeypatch.setattr(split, "share_of", lambda *_, **sizes: case.share or sizes["range_"])
    found, eager, exact = [], [], []
    # a few hundred results: pooled
    for seed in range(-(-1024 // (tokens * ROWS))):
        generator = torch.Generator().manual_seed(seed)
        scale = torch.exp(2 * torch.randn(ROWS, case.K // 64, 1, generator=generator))
        dense = (torch.randn(ROWS, case.K // 64, 64, generator=generator) * scale).reshape(ROWS, case.K)
        weight = lorafam.quantize_nf4(dense, **case.stored)
        x = (torch.randn(tokens, case.K, generator=generator) + 1).bfloat16()
        (launched,) = count(
            architecture,
            lambda x=x, weight=weight: found.append(lora_linear(x, *weight.storage(), None, None, None, None)),
        )
        decoded = weight.dequantize(torch.float32)
        eager.append(torch.nn.functional.linear(x, decoded.bfloat16()))
        exact.append(reference.nf4_linear(x.double(), decoded.double()))
    config = configuration(launched.launch.kernel)
    assert (config["SPAN"], config["ALIGNED"]) == (case.span, case.aligned)
    assert_as_good_as_eager(found, eager, exact)
