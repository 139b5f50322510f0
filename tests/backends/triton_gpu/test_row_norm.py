"""‖W + B̂A‖ from tiles of W and from panels of the sum itself: both as good as eager, and chosen by the rank."""

from __future__ import annotations

import importlib

import pytest
import torch

from lorafam import quantize_nf4
from lorafam.backends import eager, triton_gpu
from tests.conftest import INTERPRETING
from tests.tolerances import assert_as_good_as_eager

N, K, R = 1100, 128, 5
HALF = torch.float16 if INTERPRETING else torch.bfloat16


@pytest.mark.parametrize("storage", ["dense", "nf4", "nf4, one quantisation", "no whole blocks"])
@pytest.mark.parametrize("path", ["fused", "staged"])
def test_norms(path: str, storage: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorafam.kernels.paths import Route

    module = importlib.import_module("lorafam.backends.triton_gpu.row_norm")
    asked = []

    def path_of(*question: object) -> Route:
        asked.append(question)
        return Route(path, "triton" if path == "staged" else None)

    monkeypatch.setattr(module, "path_of", path_of)
    # several panels, the last one short
    monkeypatch.setattr(module, "_PANEL", 256 * K)
    generator = torch.Generator().manual_seed(0)
    columns = 72 if storage == "no whole blocks" else K

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to("cuda" if kernels == "cuda" else "cpu")

    dense, A, B_hat = random(N, columns), random(R, columns) * 0.5, random(N, R)
    if storage == "dense":
        weight = (dense.to(HALF), [], [])
        exact_weight = weight[0].double()
    else:
        quantised = quantize_nf4(dense, 64, storage != "nf4, one quantisation")
        weight = tuple(quantised.storage())
        exact_weight = quantised.dequantize(torch.float32).double()
    norms = triton_gpu.row_norm(*weight, A, B_hat, None)
    exact = torch.linalg.vector_norm(exact_weight + B_hat.double() @ A.double(), dim=1)
    assert_as_good_as_eager(norms, eager.row_norm(*weight, A, B_hat, None), exact, name=storage)
    assert [question[0] for question in asked] == ["row_norm"]


def test_high_ranks_are_staged() -> None:
    from lorafam.kernels.paths import FUSED, STAGED, path_of

    for architecture in ("sm_80", "sm_90", "sm_100", "gfx942", "interpreter"):
        assert path_of("row_norm", architecture, 0, 4096, 4096, 16).path == FUSED
        assert path_of("row_norm", architecture, 0, 4096, 4096, 384).path == STAGED
