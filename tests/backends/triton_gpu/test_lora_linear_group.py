"""Products of one x in one launch: right, only where the weights are alike, found again, and scales read once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafam import quantize_nf4
from lorafam.backends import triton_gpu
from lorafam.backends.triton_gpu import split
from lorafam.backends.triton_gpu.launch import recorded
from lorafam.inspect.traffic import count
from lorafam.ops.by_storage import joined
from tests.conftest import INTERPRETING, need_ptxsim
from tests.tolerances import assert_as_good_as_eager

Tensor = torch.Tensor
K, ROWS, RANKS = 320, (200, 72, 136), (16, 3, 8)
# the interpreter truncates to bf16
DTYPES = [torch.float16] if INTERPRETING else [torch.float16, torch.bfloat16]
LAUNCH = "lora_linear_group_kernel"


def arguments(
    where: str, tokens: int = 3, members: int = 3, seed: int = 0, dtype: torch.dtype = torch.float16, **stored: Any
) -> tuple[Any, ...]:
    """x, weights, P (columns of one matrix), B̂, bias."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(where)

    weights = [quantize_nf4(random(rows, K), **stored) for rows in ROWS[:members]]
    P = list(random(tokens, sum(RANKS[:members])).split(RANKS[:members], 1))
    B_hat = [random(rows, rank) for rows, rank in zip(ROWS[:members], RANKS[:members], strict=True)]
    return random(tokens, K).to(dtype), weights, P, B_hat, [random(rows) for rows in ROWS[:members]]


def op(x: Tensor, weights: list[Any], *rest: Any) -> list[Tensor]:
    return torch.ops.lorafam.lora_linear_group(x, *joined([weight.storage() for weight in weights]), *rest)


@pytest.fixture
def where(kernels: str) -> Any:
    triton_gpu.forget()
    yield "cuda" if kernels == "cuda" else "cpu"
    triton_gpu.forget()


def launched(given: tuple[Any, ...]) -> list[str]:
    """The kernels of a call, where that can be seen."""
    with recorded() as launches:
        op(*given)
    return [launch.name for launch in launches]


@pytest.mark.parametrize(("tokens", "members", "bias"), [(1, 3, True), (16, 2, False)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", [{}, {"double_quant": False}, {"block_size": 32}], ids=str)
def test_as_good_as_eager(
    stored: dict[str, Any], dtype: torch.dtype, tokens: int, members: int, bias: bool, where: str
) -> None:
    found, eager, exact = [], [], []
    for seed in range(-(-1024 // (tokens * sum(ROWS[:members])))):
        x, weights, P, B_hat, biases = arguments(where, tokens, members, seed, dtype, **stored)
        given = (x, weights, P, B_hat, biases if bias else [None] * members)
        found += op(*given)
        for weight, p, b_hat, own in zip(weights, P, B_hat, given[-1], strict=True):
            dense = weight.dequantize(torch.float32)
            wide = [tensor if tensor is None else tensor.double().cpu() for tensor in (x, dense, p, b_hat, own)]
            y = wide[0] @ wide[1].T + wide[2] @ wide[3].T
            exact.append(y if own is None else y + wide[4])
            rounded = torch.nn.functional.linear(x, dense.to(dtype), None if own is None else own.to(dtype))
            eager.append((rounded + (p @ b_hat.T).to(dtype)).cpu())
    assert_as_good_as_eager([y.cpu() for y in found], eager, exact)


@pytest.mark.skipif(INTERPRETING, reason="the interpreter's launches aren't recorded")
def test_one_launch_where_the_weights_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    need_ptxsim()
    monkeypatch.setenv("LORAFAM_BACKEND", "simulate")
    triton_gpu.forget()
    x, weights, P, B_hat, bias = given = arguments("cpu")
    assert launched(given) == [LAUNCH]
    assert launched((x, weights[:2], P[:2], B_hat[:2], [None, None])) == [LAUNCH]
    alone = ["lora_linear_kernel"] * 3
    other = quantize_nf4(torch.randn(ROWS[1], K), 32)
    for changed in (
        (x.float(), weights, P, B_hat, bias),
        (x, [weights[0], other, weights[2]], P, B_hat, bias),
        (x, weights, P, B_hat, [bias[0], None, bias[2]]),
        (x, weights, P, B_hat, [bias[0].half(), *bias[1:]]),
        arguments("cpu", tokens=17),
    ):
        assert launched(changed) == alone
    four = [[*one, one[0]] for one in given[1:]]
    assert launched((x, *four)) == [*alone, "lora_linear_kernel"]


@pytest.mark.simulated
@pytest.mark.skipif(INTERPRETING, reason="of compiled code only")
@pytest.mark.parametrize(("architecture", "multiprocessors"), [("sm_80", 108), ("sm_90", 132)])
def test_codes_and_scales_of_q_k_and_v_are_requested_once(
    architecture: str, multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a Llama-3-8B; alone, k and v are too small for that (`test_bytes`). A quarter of all rows is run."""
    need_ptxsim()
    columns, tokens, rows = 4096, 8, (1024, 256, 256)
    share_of = split.share_of
    monkeypatch.setattr(
        split, "share_of", lambda _, **sizes: share_of(multiprocessors, **{**sizes, "tiles": 4 * sizes["tiles"]})
    )
    weights = [quantize_nf4(torch.randn(own, columns)) for own in rows]
    x, P = torch.randn(tokens, columns).bfloat16(), list(torch.randn(tokens, 48).split(16, 1))
    B_hat = [torch.randn(own, 16) for own in rows]
    storages = joined([weight.storage() for weight in weights])
    (counted,) = count(architecture, lambda: triton_gpu.lora_linear_group(x, *storages, P, B_hat, [None, None, None]))
    names = [f"{name}_{i}_ptr" for name in ("w", "absmax", "nested_absmax") for i in range(3)]
    least = sum(counted.launch.arguments[name].nbytes for name in names) // 32
    requested = sum(counted.traffic.read[name].requested for name in names)
    print(f"codes and scales: least {least} sectors, {requested / least:.3f} of it requested")
    assert requested <= 1.05 * least
