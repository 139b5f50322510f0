"""Decoding on every kind of processor that Numba can be told to compile for, bit by bit against eager PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorafam import quantize_nf4
from lorafam.backends import eager, numba_cpu
from lorafam.backends.numba_cpu import panels as panels_module
from lorafam.backends.numba_cpu.decode import as_arrays, decode_run
from lorafam.backends.numba_cpu.panels import panels, plane_panels

SHAPES = [(1, 1), (3, 5), (7, 64), (5, 96), (70, 130), (33, 257), (2, 4096)]


def check_all() -> None:
    """Every shape, type and block size: whole and from each starting element."""
    for rows, columns in SHAPES:
        for quant_type, double in (("nf4", True), ("fp4", False)):
            for block_size in (32, 64, 4096):
                torch.manual_seed(rows * columns)
                storage = quantize_nf4(torch.randn(rows, columns), block_size, double, quant_type).storage()
                expected = eager.dequantize_4bit(*storage, torch.float32)
                assert torch.equal(numba_cpu.dequantize_4bit(*storage, torch.float32), expected)
                weight, flat = as_arrays(*storage), expected.view(-1)
                for start in {0, 1, 2, 31, 63, flat.numel() // 2} & set(range(flat.numel())):
                    out = torch.full((flat.numel() - start,), torch.nan)
                    decode_run(weight, start, flat.numel(), out.numpy())
                    assert torch.equal(out, flat[start:])


def test_this_processor() -> None:
    check_all()


@pytest.mark.parametrize(
    ("features", "lanes"), [("+sse2", 0), ("+sse2,+avx,+avx2,+fma", 8)], ids=["one by one", "AVX2"]
)
def test_another_processor(features: str, lanes: int, tmp_path: Path) -> None:
    code = (
        "from lorafam.backends.numba_cpu.vector import LANES\n"
        f"assert LANES == {lanes}, LANES\n"
        "from tests.backends.numba_cpu.test_decode import check_all\n"
        "check_all()\n"
    )
    environment = {**os.environ, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[3]
    if "avx2" in features and " avx2 " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    result = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("panel_bytes", [4, 1000, 4 * 130 * 7, 1 << 22])
def test_panels_cover_the_weight(panel_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels_module, "PANEL_BYTES", panel_bytes)
    storage = quantize_nf4(torch.randn(70, 130)).storage()
    expected = eager.dequantize_4bit(*storage, torch.float32)
    end_before = 0
    for first, end, rows in panels(*storage):
        assert first == end_before
        assert torch.equal(rows, expected[first:end])
        end_before = end
    assert end_before == 70


@pytest.mark.parametrize("panel_bytes", [4, 4 * 130 * 7, 1 << 22])
@pytest.mark.parametrize("terms", [1, 33, 64, 130, 256])
def test_planes_cover_the_weight(panel_bytes: int, terms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels_module, "_GRAIN", 1)
    storage = quantize_nf4(torch.randn(71, 130)).storage()
    expected = eager.dequantize_4bit(*storage, torch.float32)
    end_before = 0
    for first, end, planes in plane_panels(*storage, terms, panel_bytes):
        assert first == end_before
        assert all(plane.is_contiguous() and plane.shape[1] <= terms for plane in planes)
        assert torch.equal(torch.cat(planes, 1), expected[first:end])
        end_before = end
    assert end_before == 71


@pytest.mark.parametrize("panel_bytes", [1000, 1 << 22])
@pytest.mark.parametrize("tokens", [1, 17, 70])
def test_products_do_not_depend_on_the_panel(tokens: int, panel_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels_module, "PANEL_BYTES", panel_bytes)
    storage = quantize_nf4(torch.randn(70, 130)).storage()
    dense = eager.dequantize_4bit(*storage, torch.float32).double()
    x, grad = torch.randn(tokens, 130), torch.randn(tokens, 70)
    y = numba_cpu.lora_linear(x, *storage, None, None, None, None)
    torch.testing.assert_close(y.double(), x.double() @ dense.T, rtol=1e-5, atol=1e-4)
    dx = numba_cpu.lora_linear_grad(grad, *storage, None, None, None, None, 0.0)
    torch.testing.assert_close(dx.double(), grad.double() @ dense, rtol=1e-5, atol=1e-4)
