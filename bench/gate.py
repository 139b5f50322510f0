"""Correct first: before a case is timed, its output and gradients must satisfy the rule of `tests/tolerances.py`."""

from __future__ import annotations

import torch

from lorafam import reference
from lorafam.weights import NF4Weight

from .contenders import Case, train_of

Tensor = torch.Tensor


def exact(case: Case) -> tuple[Tensor, ...]:
    """(Y, dx, gradient of each leaf) by the reference in fp64, on the weight as it is decoded."""
    weight = case.layer.base_layer.weight
    dense = weight.dequantize(torch.float32) if isinstance(weight, NF4Weight) else weight
    x = case.x.detach().double().requires_grad_()
    leaves = {name: leaf.detach().double().requires_grad_() for name, leaf in case.leaves().items()}
    forward = getattr(reference, f"{case.method}_linear")
    y = forward(x=x, weight=dense.double(), **leaves, **case.settings())
    return (y.detach(), *torch.autograd.grad(y, [x, *leaves.values()], case.grad_y.double()))


def check(case: Case, contender: str = "lorafam") -> None:
    """Raises AssertionError where the contender's result is worse than the rule allows, RuntimeError outside the
    repository.

    A gradient of fewer elements than the rule needs (AdaLoRA's E, one number a rank) is only checked to be finite here;
    `tests/test_functional.py` holds it to the rule at a rank where there are enough.
    """
    try:
        from tests.tolerances import MIN_ELEMENTS, assert_as_good_as_eager
    except ImportError as error:
        raise RuntimeError("the gate needs tests/tolerances.py: run this from the repository's root") from error
    names = ["y", "dx", *(f"d{name}" for name in case.leaves())]
    results = [train_of(contender, case)(), train_of("eager", case)(), exact(case)]
    for name, ours, eager, truth in zip(names, *results, strict=True):
        if truth.numel() >= MIN_ELEMENTS:
            assert_as_good_as_eager(ours, eager, truth, name=f"{case.name} {name}")
        elif not torch.isfinite(ours).all():
            raise AssertionError(f"{case.name} {name}: NaN or inf")
