"""Arguments for every method of the family by name, and what any of them must satisfy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

METHODS = ("nf4_linear", "lora_linear", "adalora_linear", "dora_linear", "vera_linear")
DIFFERENTIABLE = ("x", "A", "E", "B", "magnitude", "bias", "d", "b")
FROZEN = {"vera_linear": ("A", "B")}

SIZES = [
    pytest.param({}, id="plain"),
    pytest.param({"bias": False, "mask": False}, id="no-bias-no-mask"),
    pytest.param({"rank": 1}, id="rank-1"),
    pytest.param({"rank": 0}, id="rank-0"),
    pytest.param({"leading": (2, 1, 3)}, id="leading-dimensions"),
    pytest.param({"leading": ()}, id="one-token"),
    pytest.param({"leading": (0,)}, id="empty-batch"),
    pytest.param({"leading": (2, 0)}, id="empty-leading-dimension"),
    pytest.param({"mean": 3.0}, id="not-zero-mean"),
]


def arguments(
    method: str,
    *,
    leading: tuple[int, ...] = (5,),
    in_features: int = 7,
    out_features: int = 6,
    rank: int = 3,
    bias: bool = True,
    mask: bool = True,
    mean: float = 0.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Any]:
    """Random keyword arguments of a method; the mask drops with p = 0.25."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) + mean).to(dtype)

    every = {
        "x": random(*leading, in_features),
        "weight": random(out_features, in_features),
        "A": random(rank, in_features),
        "E": random(rank, 1),
        "B": random(out_features, rank),
        "magnitude": random(out_features),
        "scaling": 1.7,
        "rank_num": 5.0,
        "bias": random(out_features) if bias else None,
        "mask": (torch.rand((*leading, in_features), generator=generator) >= 0.25).to(dtype) / 0.75 if mask else None,
        "d": random(rank),
        "b": random(out_features),
    }
    names = {
        "nf4_linear": ["x", "weight", "bias"],
        "lora_linear": ["x", "weight", "A", "B", "scaling", "bias", "mask"],
        "adalora_linear": ["x", "weight", "A", "E", "B", "scaling", "rank_num", "bias", "mask"],
        "dora_linear": ["x", "weight", "A", "B", "magnitude", "scaling", "bias", "mask"],
        "vera_linear": ["x", "weight", "A", "B", "d", "b", "bias", "mask"],
    }
    return {name: every[name] for name in names[method]}


def autograd_grads(forward: Callable[..., Tensor], given: dict[str, Any], grad_y: Tensor) -> dict[str, Tensor]:
    """{"dx": ..., "dA": ..., ...} by autograd, for each differentiable argument that is there."""
    wanted = [name for name in DIFFERENTIABLE if name not in FROZEN.get(forward.__name__, ())]
    leaves = {name: given[name].detach().requires_grad_() for name in wanted if given.get(name) is not None}
    grads = torch.autograd.grad(forward(**{**given, **leaves}), list(leaves.values()), grad_y)
    return {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def assert_grads_equal_autograd(
    forward: Callable[..., Tensor], gradient: Callable[..., Any], given: dict[str, Any]
) -> None:
    """The hand-written gradients are autograd's to 1e-12, and None exactly where there is no argument."""
    y = forward(**given)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    expected = autograd_grads(forward, given, grad_y)
    ours = gradient(grad_y=grad_y, **given)._asdict()
    assert {name for name, grad in ours.items() if grad is not None} == set(expected)
    for name, grad in expected.items():
        torch.testing.assert_close(
            ours[name], grad, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_gradcheck(forward: Callable[..., Tensor], given: dict[str, Any]) -> None:
    """Autograd's gradients are those of finite differences."""
    names = [name for name in DIFFERENTIABLE if given.get(name) is not None]
    leaves = tuple(given[name].detach().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(
        lambda *values: forward(**{**given, **dict(zip(names, values, strict=True))}), leaves, atol=1e-7
    )
