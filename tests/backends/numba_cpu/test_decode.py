"""Decoding on every kind of processor, bit by bit against eager PyTorch."""

from __future__ import annotations

import pytest
import torch

from lorafam import quantize_nf4
from lorafam.backends import eager, numba_cpu
from lorafam.backends.numba_cpu import panels as panels_module
from lorafam.backends.numba_cpu.four_bit import describe
from lorafam.backends.numba_cpu.panels import decode, panels
from lorafam.backends.numba_cpu.processor import Processor

SHAPES = [(1, 1), (3, 5), (7, 64), (5, 96), (70, 130), (33, 257), (2, 4096)]


@pytest.mark.parametrize("block_size", [32, 64, 4096])
@pytest.mark.parametrize(("quant_type", "double"), [("nf4", True), ("fp4", False)])
def test_same_bits_from_any_start(quant_type: str, double: bool, block_size: int, way: Processor) -> None:
    for rows, columns in SHAPES:
        torch.manual_seed(rows * columns)
        storage = quantize_nf4(torch.randn(rows, columns), block_size, double, quant_type).storage()
        expected = eager.dequantize_4bit(*storage, torch.float32)
        assert torch.equal(numba_cpu.dequantize_4bit(*storage, torch.float32), expected)
        flat = expected.view(-1)
        for start in {0, 1, 2, 31, 63, flat.numel() // 2} & set(range(flat.numel())):
            out = torch.full((flat.numel() - start,), torch.nan)
            decode(describe(storage), start, flat.numel(), out)
            assert torch.equal(out, flat[start:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    storage = quantize_nf4(torch.randn(33, 257)).storage()
    assert torch.equal(numba_cpu.dequantize_4bit(*storage, dtype), eager.dequantize_4bit(*storage, dtype))


@pytest.mark.parametrize("panel_bytes", [4, 1000, 4 * 130 * 7, 1 << 22])
def test_panels_cover_the_weight(panel_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels_module, "PANEL_BYTES", panel_bytes)
    storage = quantize_nf4(torch.randn(70, 130)).storage()
    expected = eager.dequantize_4bit(*storage, torch.float32)
    end_before = 0
    for first, end, rows in panels(storage):
        assert first == end_before
        assert torch.equal(rows, expected[first:end])
        end_before = end
    assert end_before == 70
