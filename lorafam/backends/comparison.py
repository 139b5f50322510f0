"""Compares a call of an op with eager PyTorch on the same arguments, by the ratio rule; of quantising and decoding, bit
by bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..ops.by_storage import Storage, dense_storage
from ..reference.ratio_rule import assert_as_good_as_eager
from .eager import dequantize_4bit
from .self_check_cases import Arguments, Case, Draw

Tensor = torch.Tensor

# On a card never seen eager isn't what the limits were set against: cuBLAS chooses another kernel for each card, whose
# order of summation may err less. A wrong index, scale or mask errs by orders more; a false alarm costs a fast path.
NEVER_SEEN = 4 / 3
_SAME_BITS = ("dequantize_4bit", "quantize_4bit", "quantize_absmax")


def check(
    case: Case, run: Callable[..., Any], eager: Callable[..., Any], draw: Callable[[int], Draw], least: int
) -> None:
    """Raises AssertionError unless `run` is as good as eager's, over as many draws as give `least` elements."""
    got: list[list[Tensor]] = []
    wanted: list[Expected] = []
    number = 0
    while number == 0 or (case.op not in _SAME_BITS and number < _draws(wanted[0].eager, least)):
        arguments = case.make(draw(number))
        got.append(results_of(case.op, run, arguments))
        wanted.append(expected(case.op, eager, arguments))
        number += 1
    _compare(case.op, got, wanted, least)


def _draws(results: list[Tensor], least: int) -> int:
    smallest = min((result.numel() for result in results if result.numel()), default=least)
    return math.ceil(least / smallest)


class Expected(NamedTuple):
    """What an op shall give: eager's results, and the same in fp64."""

    eager: list[Tensor]
    exact: list[Tensor]


def expected(op: str, eager: Callable[..., Any], arguments: Arguments) -> Expected:
    """Runs eager PyTorch on copies of the arguments, as they are and in fp64."""
    results = results_of(op, eager, arguments)
    if op in _SAME_BITS:
        return Expected(results, results)
    if op in ("row_norm", "squared_row_norm"):
        # no operand of theirs tells eager to decode in fp64
        arguments = (*_decoded(Storage(*arguments[:3])), *arguments[3:])
    return Expected(results, results_of(op, eager, arguments, wide=True))


def _decoded(weight: Storage) -> Storage:
    return weight if weight.is_dense else dense_storage(dequantize_4bit(*weight, torch.float64))


def results_of(op: str, run: Callable[..., Any], arguments: Arguments, *, wide: bool = False) -> list[Tensor]:
    """Every tensor that an op gives or changes; it gets copies, with `wide` in fp64."""
    copies = _copied(arguments, wide=wide)
    given = _tensors(run(*copies))
    return _tensors(copies[2:4]) if op == "adalora_importance" else given


def compare(op: str, got: list[Tensor], wanted: Expected) -> None:
    """Raises AssertionError unless the results of a call are as good as eager's, however few they are."""
    _compare(op, [got], [wanted], 1)


def _compare(op: str, got: list[list[Tensor]], wanted: list[Expected], least: int) -> None:
    """The same of several draws, pooled."""
    for index, ours in enumerate(zip(*got, strict=True)):
        eager = [one.eager[index] for one in wanted]
        if op in _SAME_BITS:
            same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(ours, eager, strict=True))
            if not same or not all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True)):
                raise AssertionError(f"result {index}: other bits than eager's")
            continue
        exact = [one.exact[index].double() for one in wanted]
        try:
            assert_as_good_as_eager(ours, eager, exact, name=f"result {index}", allowance=NEVER_SEEN, least=least)
        except AssertionError as error:
            raise AssertionError(" ".join(str(error).split())) from None


def _copied(arguments: Arguments, *, wide: bool) -> Arguments:
    """Copies, since an op may write into them; `wide`: operands in fp64, 4-bit scales as they are."""

    def copy(value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            four_bit = value[0].dtype == torch.uint8
            return [part.clone() if four_bit else copy(part) for part in value]
        if not isinstance(value, Tensor):
            return value
        return value.double() if wide and value.is_floating_point() else value.clone()

    return tuple(copy(value) for value in arguments)


def _tensors(result: Any) -> list[Tensor]:
    if result is None:
        return []
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in _tensors(part)]
