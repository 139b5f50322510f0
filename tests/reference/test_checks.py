"""Every wrong argument of every method raises one error that names it, forward and gradient alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafam import reference
from tests.reference.cases import METHODS, arguments

WRONG_SHAPES = {
    "x": ((5, 8), r"x: expected shape \[\.\.\., 7\], got \[5, 8\]"),
    "weight": ((6,), r"weight: expected shape \[any, any\], got \[6\]"),
    "A": ((3, 6), r"A: expected shape \[any, 7\], got \[3, 6\]"),
    "E": ((3,), r"E: expected shape \[3, 1\], got \[3\]"),
    "B": ((6, 2), r"B: expected shape \[6, 3\], got \[6, 2\]"),
    "magnitude": ((1,), r"magnitude: expected shape \[6\], got \[1\]"),
    "bias": ((5, 6), r"bias: expected shape \[6\], got \[5, 6\]"),
    "mask": ((7,), r"mask: expected shape \[5, 7\], got \[7\]"),
}
METHOD_ARGUMENTS = [(method, name) for method in METHODS for name in WRONG_SHAPES if name in arguments(method)]


def calls(method: str, given: dict[str, Any]) -> list[Any]:
    grad_y = torch.ones(5, 6).double()
    return [
        lambda: getattr(reference, method)(**given),
        lambda: getattr(reference, f"{method}_grad")(grad_y=grad_y, **given),
    ]


@pytest.mark.parametrize(("method", "name"), METHOD_ARGUMENTS)
def test_wrong_shape(method: str, name: str) -> None:
    shape, message = WRONG_SHAPES[name]
    for call in calls(method, {**arguments(method), name: torch.zeros(shape, dtype=torch.float64)}):
        with pytest.raises(ValueError, match=f"^{message}$"):
            call()


@pytest.mark.parametrize(("method", "name"), METHOD_ARGUMENTS)
def test_wrong_dtype(method: str, name: str) -> None:
    given = arguments(method)
    if name == "weight":
        wrong, message = given[name].to(torch.uint8), "weight: expected a floating-point dtype, got torch.uint8"
    else:
        wrong, message = given[name].float(), f"{name}: expected torch.float64, got torch.float32"
    for call in calls(method, {**given, name: wrong}):
        with pytest.raises(TypeError, match=f"^{message}$"):
            call()


@pytest.mark.parametrize(("method", "name"), [pair for pair in METHOD_ARGUMENTS if pair[1] != "weight"])
def test_wrong_device(method: str, name: str) -> None:
    given = arguments(method)
    for call in calls(method, {**given, name: given[name].to("meta")}):
        with pytest.raises(ValueError, match=f"^{name}: expected device cpu, got meta$"):
            call()


@pytest.mark.parametrize("method", METHODS)
def test_wrong_output_gradient(method: str) -> None:
    with pytest.raises(ValueError, match=r"^grad_y: expected shape \[5, 6\], got \[5, 7\]$"):
        getattr(reference, f"{method}_grad")(grad_y=torch.ones(5, 7).double(), **arguments(method))


def test_a_scalar_is_not_a_row_of_tokens() -> None:
    given = arguments("lora_linear", mask=False)
    with pytest.raises(ValueError, match=r"^x: expected shape \[\.\.\., 7\], got \[\]$"):
        reference.lora_linear(**{**given, "x": torch.tensor(1.0).double()})
