"""AdaLoRA's importance, scores and penalty over tensors laid end to end, on compiled code and in the interpreter,
against the reference in fp64.
"""

from __future__ import annotations

import pytest
import torch

from lorafam.autograd import OrthogonalityFunction
from lorafam.backends import triton_gpu
from lorafam.reference import adalora_importance as formulae
from lorafam.reference import orthogonality_penalty
from tests.conftest import device
from tests.tolerances import assert_as_good_as_eager

pytestmark = pytest.mark.usefixtures("kernels")

SHAPES = [(8, 130), (8, 1), (70, 8), (3, 700), (3, 1), (41, 3)]


def random(scale: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(int(scale * 100))
    return [(torch.randn(shape, generator=generator) * scale).to(device()) for shape in SHAPES]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_penalty_and_its_gradients(dtype: torch.dtype) -> None:
    """Ranks below, at and above a tile; lengths with tails; a factor that is orthogonal, whose gradient is 0."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 130), (16, 64), (37, 277), (70, 8), (515, 33), (1, 1)]
    dims = [0, 0, 0, 1, 1, 0]
    factors = [(torch.randn(shape, generator=generator) * 0.3 + 0.1).to(device(), dtype) for shape in shapes]
    factors.append(torch.eye(20, 8, dtype=dtype, device=device()))
    dims.append(1)
    weights = torch.randn(len(factors), generator=generator).to(device())

    def penalty(which: str) -> tuple[torch.Tensor, ...]:
        to = torch.float64 if which == "exact" else torch.float32
        leaves = [factor.detach().to(dtype if which == "ours" else to).requires_grad_() for factor in factors]
        if which == "ours":
            distances = OrthogonalityFunction.apply(tuple(dims), *leaves)
        else:
            each = [([leaf], []) if dim == 0 else ([], [leaf]) for leaf, dim in zip(leaves, dims, strict=True)]
            distances = torch.stack([orthogonality_penalty(*pair) for pair in each])
        grads = torch.autograd.grad(distances, leaves, weights.to(distances.dtype))
        return distances.detach(), *(grad.float() if which != "exact" else grad for grad in grads)

    ours, eager, exact = penalty("ours"), penalty("eager"), penalty("exact")
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=1e-6)
    assert ours[-1].eq(0).all()
    if dtype == torch.float32:
        assert_as_good_as_eager(ours[1:-1], eager[1:-1], exact[1:-1], name="gradients")
    else:
        for mine, right in zip(ours[1:-1], exact[1:-1], strict=True):
            torch.testing.assert_close(mine.double(), right, rtol=2**-8, atol=1e-6)
