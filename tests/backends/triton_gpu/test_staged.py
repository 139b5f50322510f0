"""The staged path by both dense products: outputs and all gradients against fp64, and what doesn't take it."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.conftest import INTERPRETING
from tests.test_functional import Shape, compare

pytestmark = pytest.mark.simulated

DTYPE = torch.float16 if INTERPRETING else torch.bfloat16
TAKEN = Shape(40, 192, 1032, 6, 1)
NO_WHOLE_BLOCKS = Shape(40, 180, 1032, 6, 1)
OPS = ("lora_linear", "lora_linear_grad")


@pytest.fixture(params=["cublas", "triton"])
def decoded(request: pytest.FixtureRequest, kernels: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sends every product down the staged path; the ops that decoded their weight, as they did."""
    from lorafam.kernels.paths import STAGED, Route

    seen: list[str] = []
    for op in OPS:
        module = importlib.import_module(f"lorafam.backends.triton_gpu.{op}")
        monkeypatch.setattr(module, "path_of", lambda *_: Route(STAGED, request.param))

        def watched(*arguments: object, op: str = op, decode=module.decoded_weight) -> torch.Tensor:
            seen.append(op)
            return decode(*arguments)

        monkeypatch.setattr(module, "decoded_weight", watched)
    return seen


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("method", ["nf4_linear", "lora_linear", "dora_linear"])
def test_gradients(method: str, dropout_p: float, decoded: list[str]) -> None:
    if method == "nf4_linear" and dropout_p:
        pytest.skip("it has no dropout")
    compare(method, "nf4", DTYPE, mean=1.0, dropout_p=dropout_p, shape=TAKEN)
    assert set(OPS) == set(decoded)


@pytest.mark.parametrize(
    ("storage", "dtype", "shape"),
    [("dense", DTYPE, TAKEN), ("nf4", torch.float32, TAKEN), ("nf4", DTYPE, NO_WHOLE_BLOCKS)],
    ids=["dense", "fp32", "no whole blocks"],
)
def test_what_is_not_taken(storage: str, dtype: torch.dtype, shape: Shape, decoded: list[str]) -> None:
    compare("lora_linear", storage, dtype, mean=1.0, dropout_p=0.0, shape=shape)
    assert decoded == []
