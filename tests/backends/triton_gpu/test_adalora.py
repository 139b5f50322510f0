"""AdaLoRA's importance and scores over tensors laid end to end, on compiled code, against the reference in fp64."""

from __future__ import annotations

import pytest
import torch

from lorafam.backends import triton_gpu
from lorafam.reference import adalora_importance as formulae
from tests.conftest import need_ptxsim
from tests.tolerances import assert_as_good_as_eager

SHAPES = [(8, 130), (8, 1), (70, 8), (3, 700), (3, 1), (41, 3)]


@pytest.fixture(autouse=True, params=["sm_80", "sm_90"])
def _simulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    need_ptxsim()
    monkeypatch.setenv("LORAFAM_BACKEND", "simulate")
    monkeypatch.setenv("LORAFAM_SIMULATE", request.param)


def random(scale: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(int(scale * 100))
    return [torch.randn(shape, generator=generator) * scale for shape in SHAPES]


def test_importance() -> None:
    parameters, gradients = random(1.0), random(0.3)
    sensitivity, uncertainty = [t.abs() for t in random(0.2)], [t.abs() for t in random(0.1)]
    exact = [
        formulae.importance_update(*(t.double() for t in four), 0.85, 0.9)
        for four in zip(parameters, gradients, sensitivity, uncertainty, strict=True)
    ]
    eager = [
        formulae.importance_update(*four, 0.85, 0.9)
        for four in zip(parameters, gradients, sensitivity, uncertainty, strict=True)
    ]
    triton_gpu.adalora_importance(parameters, gradients, sensitivity, uncertainty, 0.85, 0.9)
    for name, ours in (("sensitivity", sensitivity), ("uncertainty", uncertainty)):
        assert_as_good_as_eager(ours, [getattr(e, name) for e in eager], [getattr(e, name) for e in exact], name=name)


def test_scores() -> None:
    sensitivity, uncertainty = [t.abs() for t in random(0.2)], [t.abs() for t in random(0.1)]
    dims = [0, 0, 1, 0, 0, 1]
    scores = triton_gpu.adalora_scores(sensitivity, uncertainty, dims)
    for found, a, b, dim in zip(scores, sensitivity, uncertainty, dims, strict=True):
        exact = (a.double() * b.double()).mean(1 - dim)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


def test_nothing_to_do() -> None:
    triton_gpu.adalora_importance([], [], [], [], 0.85, 0.9)
    assert triton_gpu.adalora_scores([], [], []) == []
