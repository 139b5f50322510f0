"""What `explain` tells of the GPU kernels: path and configuration as they run, bytes and flops by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorafam import LoraLinear, explain, quantize_nf4
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="of compiled code")
N, K = 256, 512


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFAM_BACKEND", "simulate")
    monkeypatch.setenv("LORAFAM_SIMULATE", "sm_90")


@pytest.mark.parametrize(
    ("tokens", "path", "times"),
    [(0, "decode", 0), (1, "decode", 1), (16, "decode", 1), (40, "tiles", 1), (130, "tiles", 2)],
)
def test_fused(tokens: int, path: str, times: int) -> None:
    weight = quantize_nf4(torch.ones(N, K, dtype=torch.bfloat16))
    told = explain(weight, tokens)
    assert told.path == path
    assert told.bytes == times * weight.nbytes + 2 * tokens * (N + K)
    assert told.flops == 2 * tokens * N * K
    assert told.modelled_seconds is None
    assert "modelled" not in str(told)
    assert "BLOCK_K" in str(told)


def test_staged() -> None:
    weight = quantize_nf4(torch.ones(N, K, dtype=torch.bfloat16))
    told = explain(weight, 2048)
    assert told.path == "staged"
    assert told.bytes == weight.nbytes + 2 * 2 * N * K + 2 * 2048 * (N + K)
    assert "cublas" in str(told)


def test_a_layer_has_its_rank() -> None:
    layer = LoraLinear(nn.Linear(K, N, dtype=torch.bfloat16), r=8)
    told = explain(layer, 4)
    assert told.flops == 2 * 4 * N * (K + 8)
    assert told.bytes == 2 * N * K + 2 * 4 * (N + K) + 4 * 8 * (4 + N)


def test_the_roofline_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from lorafam.backends.triton_gpu.roofline import roofline

    # an H100 SXM as its driver describes it
    properties = SimpleNamespace(
        memory_clock_rate=2_619_000, memory_bus_width=5120, clock_rate=1_830_000, multi_processor_count=132
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    found = roofline(torch.device("cuda", 0), "sm_90")
    assert found is not None
    assert found.bandwidth == pytest.approx(3.35e12, rel=0.01)
    assert found.flops == pytest.approx(989e12, rel=0.01)
    assert found.seconds(3_350_000, 0) == pytest.approx(1e-6, rel=0.01)
    assert roofline(torch.device("cuda", 0), "sm_75") is None
    assert roofline(torch.device("cpu"), "sm_90") is None
    properties.memory_clock_rate = 0
    assert roofline(torch.device("cuda", 0), "sm_90") is None
