"""Correct first: before a case is timed, its output and gradients must satisfy `reference.ratio_rule`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from lorafam import reference
from lorafam.backends.eager import dequantize_4bit
from lorafam.reference.ratio_rule import MIN_ELEMENTS, assert_as_good_as_eager
from lorafam.weights import NF4Weight

from .case import Case
from .contenders import case_for, train_of

Tensor = torch.Tensor


# dA of one token is Qᵀ x: all its elements share the errors of r values, of which a few say nothing
SHARED_ERRORS = 512


def draws(case: Case) -> list[Case]:
    """The case, and as many copies with other inputs as it takes to have `SHARED_ERRORS` of them."""
    generator = torch.Generator().manual_seed(1)
    cases = [case]
    for _ in range(1, math.ceil(SHARED_ERRORS / (case.tokens * case.rank))):
        x, grad_y = (torch.randn(t.shape, generator=generator).to(t) for t in (case.x, case.grad_y))
        cases.append(dataclasses.replace(case, x=x.requires_grad_(), grad_y=grad_y))
    return cases


def exact(case: Case, weight: Tensor) -> tuple[Tensor, ...]:
    """(Y, dx, gradient of each leaf) by the reference in fp64, on the fp64 weight."""
    x = case.x.detach().double().requires_grad_()
    leaves = {name: leaf.detach().double().requires_grad_() for name, leaf in case.leaves().items()}
    forward = getattr(reference, f"{case.method}_linear")
    y = forward(x=x, weight=weight, **leaves, **case.settings())
    return (y.detach(), *torch.autograd.grad(y, [x, *leaves.values()], case.grad_y.double()))


def check(case: Case, contender: str = "lorafam") -> None:
    """Raises AssertionError, in one line, where the contender's result is worse than the rule allows. Eager has the
    contender's dtypes.

    A gradient of fewer elements than the rule needs (AdaLoRA's E, one number a rank) is only checked to be finite here;
    `tests/test_functional.py` holds it to the rule at a rank where there are enough.
    """
    case = case_for(contender, case)
    names = ["y", "dx", *(f"d{name}" for name in case.leaves())]
    weight: Any = case.layer.base_layer.weight
    # not by a kernel under test
    wide = dequantize_4bit(*weight.storage(), torch.float32) if isinstance(weight, NF4Weight) else weight.detach()
    wide = wide.double()
    cases = draws(case)
    by_draw = [
        [train_of(contender, one)() for one in cases],
        [train_of("eager", one)() for one in cases],
        [exact(one, wide) for one in cases],
    ]
    found = [list(zip(*results, strict=True)) for results in by_draw]
    for name, ours, eager, truth in zip(names, *found, strict=True):
        if sum(part.numel() for part in truth) >= MIN_ELEMENTS:
            try:
                assert_as_good_as_eager(ours, eager, truth, name=f"{case.name} {name}")
            except AssertionError as error:
                raise AssertionError(" ".join(str(error).split())) from None
        elif not all(torch.isfinite(part).all() for part in ours):
            raise AssertionError(f"{case.name} {name}: NaN or inf")
