"""The ratio rule: a result may be about as wrong as eager PyTorch's in the same dtypes, and no more.

    e = result - exact, in fp64            floor = 0.5 u RMS(exact), u the unit roundoff of the dtype (half its epsilon)

    RMS(e_ours) <= 1.5 RMS(e_eager) + floor          max |e_ours| <= 3 max |e_eager| + floor

"Eager" is PEFT's order of operations (`peft_order`) on the same inputs, "exact" is the reference in fp64 on those
inputs. Two equally good orders of summation differ by more than 1.5 on a few hundred elements, so results of fewer than
1,024 are pooled over several seeds. Tests, the benchmark's gate and a GPU's self-check hold results to it; none has a
tolerance of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RMS_RATIO = 1.5
MAX_RATIO = 3.0
FLOOR = 0.5
MIN_ELEMENTS = 1024

Tensors = Tensor | Sequence[Tensor]


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to `dtype`: 2⁻⁸ for bf16, 2⁻¹¹ for fp16, 2⁻²⁴ for fp32."""
    return torch.finfo(dtype).eps / 2


def assert_as_good_as_eager(
    ours: Tensors,
    eager: Tensors,
    exact: Tensors,
    *,
    name: str = "result",
    allowance: float = 1.0,
    least: int = MIN_ELEMENTS,
) -> None:
    """Raises AssertionError with the measured ratios where `ours` breaks the ratio rule; `name` says what is measured,
    `allowance` by how much both limits are wider, `least` of how many elements the rule is asked.

    Each argument is a tensor, or a list of tensors (one a seed), which are pooled. `ours` and `eager` have one dtype,
    at most fp32; `exact` is fp64. Another shape or dtype fails, and so does a NaN or an infinity anywhere; empty
    tensors of the right shape pass. Raises ValueError where the rule can't be applied: nothing was given, `exact` isn't
    fp64 or `eager` is, their shapes differ, or there are some but fewer than `least` elements.
    """
    all_ours, all_eager, all_exact = _listed(ours), _listed(eager), _listed(exact)
    _check_comparable(all_eager, all_exact, name, least)
    assert len(all_ours) == len(all_eager), f"{name}: expected {len(all_eager)} tensors, got {len(all_ours)}"
    for got, want in zip(all_ours, all_eager, strict=True):
        assert got.shape == want.shape, f"{name}: expected shape {list(want.shape)}, got {list(got.shape)}"
        assert got.dtype == want.dtype, f"{name}: expected {want.dtype}, got {got.dtype}"

    reference = _pooled(all_exact)
    if reference.numel() == 0:
        return
    ours_error, eager_error = _pooled(all_ours) - reference, _pooled(all_eager) - reference
    for what, values in (("ours", ours_error), ("eager", eager_error)):
        wrong = int((~values.isfinite()).sum())
        assert wrong == 0, f"{name}: {wrong} of {values.numel()} elements are NaN or infinite in {what} or exact"

    floor = FLOOR * unit_roundoff(all_eager[0].dtype) * _rms(reference)
    rms, eager_rms = _rms(ours_error), _rms(eager_error)
    worst, eager_worst = float(ours_error.abs().max()), float(eager_error.abs().max())
    most_rms, most_worst = allowance * RMS_RATIO, allowance * MAX_RATIO
    message = (
        f"{name}: error against fp64 on {reference.numel()} elements\n"
        f"  RMS {rms:.3e}, eager {eager_rms:.3e}: ratio {_ratio(rms, eager_rms):.2f}, limit {most_rms:.3g}\n"
        f"  max {worst:.3e}, eager {eager_worst:.3e}: ratio {_ratio(worst, eager_worst):.2f}, limit {most_worst:.3g}\n"
        f"  floor {floor:.3e}, RMS of the exact result {_rms(reference):.3e}"
    )
    assert rms <= most_rms * eager_rms + floor, message
    assert worst <= most_worst * eager_worst + floor, message


def _check_comparable(eager: list[Tensor], exact: list[Tensor], name: str, least: int) -> None:
    if not exact:
        raise ValueError(f"{name}: expected at least one tensor, got none")
    if [tensor.shape for tensor in eager] != [tensor.shape for tensor in exact]:
        shapes = [[list(tensor.shape) for tensor in tensors] for tensors in (eager, exact)]
        raise ValueError(f"{name}: eager and exact differ in shape, {shapes[0]} and {shapes[1]}")
    for tensor in exact:
        if tensor.dtype != torch.float64:
            raise ValueError(f"{name}: exact must be torch.float64, got {tensor.dtype}")
    for tensor in eager:
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16) or tensor.dtype != eager[0].dtype:
            raise ValueError(
                f"{name}: eager must be float32, bfloat16 or float16 throughout, got {tensor.dtype}; "
                "fp64 results have nothing better to be measured against"
            )
    count = sum(tensor.numel() for tensor in exact)
    if 0 < count < least:
        raise ValueError(
            f"{name}: the ratio rule needs at least {least} elements, got {count}; "
            f"pass lists of at least {-(-least * len(exact) // count)} seeds' tensors"
        )


def _listed(tensors: Tensors) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _pooled(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().to("cpu", torch.float64).flatten() for tensor in tensors])


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _ratio(ours: float, eager: float) -> float:
    return ours / eager if eager else float("inf") if ours else 1.0
