"""The gains do what they are for: no mean error over normal weights, and less error than rounding the weights."""

from __future__ import annotations

import pytest
import torch
from lorafam.kernels.formats import FP4, format_of

from lorafam import quantize_nf4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_error_over_normal_weights(quant_type: str, dtype: torch.dtype) -> None:
    row = format_of(quant_type)
    weight = torch.randn(2048, 1024, generator=torch.Generator().manual_seed(0))
    quantised = quantize_nf4(weight, 64, False, quant_type=quant_type)
    decoded = quantised.dequantize(torch.float32).double()
    exact = torch.tensor(row.levels, dtype=torch.float64)
    gain = row.gain("bf16" if dtype == torch.bfloat16 else "fp16")
    rounded = (exact * gain).to(dtype).double() / gain
    codes = quantised.codes.view(-1)
    code = torch.stack([codes >> 4, codes & 15], 1).view(-1, 64).long()
    absmax = quantised.scales[0].double().unsqueeze(1)
    error = (rounded[code] - exact[code]) * absmax
    eager = decoded.to(dtype).double() - decoded
    assert error.square().mean().sqrt() < eager.square().mean().sqrt()
    # the mean of a million roundings of either sign is a thousandth of their size
    assert error.mean().abs() < 0.01 * eager.square().mean().sqrt()


def test_fp4_is_exact() -> None:
    """24 · level is a whole number but for the smallest, 1/8; a float of few bits holds 0.75 · level."""
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        levels, gain = torch.tensor(FP4.levels, dtype=torch.float64), FP4.gain(name)
        torch.testing.assert_close((levels * gain).to(dtype).double() / gain, levels, rtol=1e-6, atol=0)
