"""One pass over dY where it reads and writes less than two, with the same results."""

from __future__ import annotations

import pytest
import torch

from lorafam.backends import triton_gpu
from lorafam.backends.eager import lora_factors_grad as eager
from tests.conftest import INTERPRETING

DTYPE = torch.float16 if INTERPRETING else torch.bfloat16


@pytest.mark.parametrize(
    ("tokens", "rank", "dtype", "taken"),
    [
        (0, 8, DTYPE, False),
        (4096, 16, DTYPE, True),
        (4096, 17, DTYPE, False),
        (40, 16, torch.float32, True),
        (4096, 16, torch.float32, True),
    ],
)
def test_where_it_is_taken(tokens: int, rank: int, dtype: torch.dtype, taken: bool, kernels: str) -> None:
    from lorafam.backends.triton_gpu.lora_grad_pass import pass_config

    grad_y = torch.empty(tokens, 8, dtype=dtype, device="cuda" if kernels == "cuda" else "cpu")
    assert (pass_config(grad_y, rank) is not None) == taken


@pytest.mark.parametrize(("out_features", "rank"), [(28_672, 16), (4096, 8), (1 << 20, 64), (0, 4)])
def test_memory_for_parts(out_features: int, rank: int) -> None:
    from lorafam.backends.triton_gpu.lora_grad_pass import MOST_BYTES, _most_tiles

    tiles = _most_tiles(out_features, rank)
    each = 4 * out_features * (rank + 2)
    assert MOST_BYTES == 64 << 20
    assert tiles == 1 or tiles * each <= MOST_BYTES
    assert (tiles + 1) * each > MOST_BYTES or not out_features


@pytest.mark.parametrize("at_once", ["all tiles", "a tile"])
@pytest.mark.parametrize("needs_bias", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_as_good_as_two(
    scaled: bool, needs_bias: bool, at_once: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    module = importlib.import_module("lorafam.backends.triton_gpu.lora_factors_grad")
    if at_once == "a tile":
        monkeypatch.setattr("lorafam.backends.triton_gpu.lora_grad_pass.MOST_BYTES", 1)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to("cuda" if kernels == "cuda" else "cpu")

    M, N, K, R = 150, 100, 40, 7
    grad_y, x, y = random(M, N).to(DTYPE), random(M, K).to(DTYPE), random(M, N).to(DTYPE)
    vectors = (random(N).abs() + 0.5, y, random(N), random(N).abs() + 0.5) if scaled else (None, None, None, None)
    given = (grad_y, x, random(M, R), random(N, R), *vectors, None, 0.0, needs_bias)
    one = triton_gpu.lora_factors_grad(*given)
    monkeypatch.setattr(module, "pass_config", lambda *_: None)
    two = triton_gpu.lora_factors_grad(*given)
    exact = eager(*(value.double() if isinstance(value, torch.Tensor) else value for value in given))
    for name, a, b, wanted in zip(("Q", "dA", "dB", "dm", "dbias"), one, two, exact, strict=True):
        assert a.shape == b.shape == wanted.shape, name
        errors = [(result.double() - wanted).square().sum().sqrt() for result in (a, b)]
        size = wanted.square().sum().sqrt()
        # sums in another order: fp32 roundings of the same number of terms
        assert errors[0] <= 2 * errors[1] + 1e-7 * size, name
