"""Dense weights in the kernels for many tokens, on every kind of processor, by the ratio rule: rows and columns that
fill no tile, a weight in bf16 under fp32 tokens, c, bias and a low-rank part.
"""

from __future__ import annotations

import pytest
import torch

from lorafam.backends import eager
from lorafam.backends.numba_cpu import dense_choice, dense_product
from lorafam.backends.numba_cpu.processor import Processor
from tests.tolerances import assert_as_good_as_eager

# weight and tokens
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)]


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize(("N", "K", "M"), [(640, 256, 128), (333, 401, 65), (520, 300, 530)])
@pytest.mark.parametrize(("kind", "dtype"), DTYPES)
def test_as_good_as_eager(
    kind: torch.dtype,
    dtype: torch.dtype,
    N: int,
    K: int,
    M: int,
    low_rank: bool,
    way: Processor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LORAFAM_DENSE", "own")
    monkeypatch.setattr(dense_choice, "_LEAST", 0)
    torch.manual_seed(0)
    weight, x, grad = (
        torch.randn(size).to(kind if i == 0 else dtype) for i, size in enumerate([(N, K), (M, K), (M, N)])
    )
    P, B_hat, A, Q = (torch.randn(size, 7) if low_rank else None for size in (M, N, K, M))
    A = None if A is None else A.T.contiguous()
    c, bias = (torch.rand(N) + 0.5, torch.randn(N)) if low_rank else (None, None)
    forward = x, weight, [], [], P, B_hat, c, bias
    backward = grad, weight, [], [], c, Q, A, None, 0.0
    for op, arguments in (("lora_linear", forward), ("lora_linear_grad", backward)):
        ours = (dense_product.forward if op == "lora_linear" else dense_product.backward)(
            *((x, weight, P, B_hat, c, bias) if op == "lora_linear" else (grad, weight, c, Q, A, None))
        )
        wide = [value.double() if isinstance(value, torch.Tensor) else value for value in arguments]
        # eager multiplies in one dtype
        theirs = [value.to(dtype) if value is weight else value for value in arguments]
        exact = getattr(eager, op)(*wide)
        assert_as_good_as_eager([ours], [getattr(eager, op)(*theirs)], [exact], name=op)


def test_the_way_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(512, 512)
    paths = []
    for choice in ("own", "platform"):
        monkeypatch.setenv("LORAFAM_DENSE", choice)
        paths.append(dense_product.plan(weight, 128).path)
    assert paths == ["tiles", "dense"]
    assert dense_product.plan(torch.randn(8, 8), 128).path == "dense"
