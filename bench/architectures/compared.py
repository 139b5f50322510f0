"""Outputs, gradients and tokens of two models, held to one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lorafam.reference.ratio_rule import assert_as_good_as_eager

from .models import factors
from .reference import in_fp64

Tensor = torch.Tensor
# of the largest gradient; what is smaller is zero but for rounding
_NOTHING = 1e-7
# the errors of a whole model's outputs and gradients are few independent ones: eager's vary by 2 from batch to batch
_WHOLE_MODEL = 2.0
# PEFT's own error, relative: far above rounding, far below anything wrong
_RIGHT = 1e-3
# how much adapters must change, so that it would be seen if they were skipped
_SEEN = 1e-2


def outputs(model: nn.Module, inputs: Mapping[str, Any], names: tuple[str, ...]) -> list[Tensor]:
    """What a row compares, without gradients."""
    with torch.no_grad():
        found = model(**inputs)
    return [found[name] for name in names]


def exact_outputs(model: nn.Module, inputs: Mapping[str, Any], names: tuple[str, ...]) -> list[Tensor]:
    """Those of a model in fp64."""
    with in_fp64():
        return outputs(model, widened(inputs), names)


def widened(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """fp32 tensors in fp64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value
        for name, value in inputs.items()
    }


def as_good(ours: list[Tensor], plain: list[Tensor], exact: list[Tensor], name: str) -> None:
    """The ratio rule, where PEFT is right; raises AssertionError."""
    for one, right in zip(plain, exact, strict=True):
        off = float((one - right).norm() / right.norm())
        assert off < _RIGHT, f"{name}: PEFT's are {off:.1e} off themselves"
    assert_as_good_as_eager(ours, plain, exact, name=name, allowance=_WHOLE_MODEL)


def same(ours: list[Tensor], others: list[Tensor], name: str) -> None:
    """To the bit."""
    for one, other in zip(ours, others, strict=True):
        off = float((one.double() - other.double()).abs().max())
        assert torch.equal(one, other), f"{name}: expected the same bits, {off:.2e} off"


def same_factors(model: nn.Module, other: nn.Module, name: str) -> None:
    """What is trained: to the bit. Outputs needn't be: tensors of a file lie elsewhere, which changes a product's."""
    ours, theirs = (dict(factors(one)) for one in (model, other))
    assert ours.keys() == theirs.keys(), f"{name}: {sorted(ours.keys() ^ theirs.keys())[:4]} differ"
    off = [key for key, factor in ours.items() if not torch.equal(factor, theirs[key])]
    assert not off, f"{name}: expected the same bits, {off[0]} has others"


def different(adapted: list[Tensor], others: list[Tensor], name: str) -> None:
    """So far apart that a skipped adapter would be seen."""
    for one, other in zip(adapted, others, strict=True):
        change = float((one - other).norm() / one.norm())
        assert change > _SEEN, f"{name}: adapters change the outputs by {change:.1e} only"


def gradients(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of the loss, by name; where a parameter has none, zeros."""
    model.zero_grad()
    model(**inputs)["loss"].backward()
    return {name: torch.zeros_like(part) if part.grad is None else part.grad for name, part in factors(model)}


def exact_gradients(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Those of a model in fp64."""
    with in_fp64():
        return gradients(model, widened(inputs))


def as_good_gradients(
    ours: list[dict[str, Tensor]], plain: list[dict[str, Tensor]], exact: list[dict[str, Tensor]]
) -> None:
    """The ratio rule over all gradients of all batches, each in units of its own size, so that no small one is lost
    among large ones.
    """
    counted: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for one, other, right in zip(ours, plain, exact, strict=True):
        assert one.keys() == other.keys() == right.keys(), f"trained: {sorted(one.keys() ^ other.keys())[:4]} differ"
        sizes = {name: float(gradient.square().mean().sqrt()) for name, gradient in right.items()}
        largest = max(sizes.values())
        assert largest > 0, "gradients: all are zero"
        for name, size in sizes.items():
            if size > _NOTHING * largest:
                for part, gradients_ in zip(counted, (one, other, right), strict=True):
                    part.append(gradients_[name] / size)
                continue
            wrong = float(one[name].abs().max())
            assert wrong < 1e-5 * largest, f"{name}: gradient {wrong:.1e}, expected none"
    as_good(*counted, name="gradients")
