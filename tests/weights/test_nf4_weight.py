"""NF4Weight as an object: what it reports, how it moves and is copied, what it refuses."""

import copy
import pickle

import pytest
import torch

from lorafam.ops.by_storage import Layout
from lorafam.weights import NF4Weight, quantize_nf4


@pytest.fixture(autouse=True)
def _backends(backend: str) -> None:
    """Every test runs on every backend."""


@pytest.fixture
def dense() -> torch.Tensor:
    return torch.randn(24, 200, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_round_trip(dense: torch.Tensor, dtype: torch.dtype, quant_type: str, double_quant: bool) -> None:
    weight = quantize_nf4(dense.to(dtype), 128, double_quant, quant_type=quant_type)
    assert weight.shape == torch.Size([24, 200])
    assert (weight.dtype, weight.device) == (dtype, torch.device("cpu"))
    assert (weight.block_size, weight.quant_type, weight.double_quant) == (128, quant_type, double_quant)
    assert weight.nested_block_size == (256 if double_quant else 0)
    assert weight.dequantize().dtype == dtype
    assert weight.dequantize(torch.float64).dtype == torch.float64
    # half the widest gap between levels (0.33 for FP4, 0.30 for NF4), times the absmax, and the error of the absmax
    error = (weight.dequantize(torch.float32) - dense).abs().max()
    assert 0.05 < error < 0.19 * dense.abs().max()


def test_defaults(dense: torch.Tensor) -> None:
    weight = quantize_nf4(dense)
    assert (weight.block_size, weight.double_quant, weight.quant_type) == (64, True, "nf4")


def test_bytes() -> None:
    weight = quantize_nf4(torch.randn(1024, 1024, dtype=torch.bfloat16))
    blocks = 1024 * 1024 // 64
    assert weight.nbytes == 1024 * 1024 // 2 + blocks + 4 * (blocks // 256) + 4
    assert round(weight.bits_per_parameter, 3) == 4.127
    single = quantize_nf4(torch.randn(64, 64), double_quant=False)
    assert single.nbytes == 2048 + 4 * 64
    assert single.bits_per_parameter == 4.5


def test_repr(dense: torch.Tensor) -> None:
    assert repr(quantize_nf4(dense.half(), quant_type="fp4")) == (
        "NF4Weight(shape=[24, 200], dtype=torch.float16, device=cpu, quant_type='fp4', block_size=64, "
        "double_quant=True, bits_per_parameter=4.138)"
    )


def test_squared_row_norm_is_formed_once(dense: torch.Tensor) -> None:
    weight = quantize_nf4(dense)
    squared = weight.squared_row_norm()
    assert squared.dtype == torch.float32
    torch.testing.assert_close(squared, weight.dequantize(torch.float64).square().sum(1).float())
    assert weight.squared_row_norm() is squared
    tensors = weight.tensors() | {"codes": torch.zeros_like(weight.codes)}
    assert not torch.equal(weight.with_tensors(tensors).squared_row_norm(), squared)


@pytest.mark.parametrize("double_quant", [False, True])
def test_copies_equal_the_original(dense: torch.Tensor, double_quant: bool) -> None:
    weight = quantize_nf4(dense, double_quant=double_quant)
    weight.squared_row_norm()
    for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight)), weight.with_tensors(weight.tensors())):
        assert torch.equal(other.dequantize(), weight.dequantize())
        assert other.layout == weight.layout
        assert torch.equal(other.squared_row_norm(), weight.squared_row_norm())
    assert copy.deepcopy(weight).codes.data_ptr() != weight.codes.data_ptr()


def test_to(dense: torch.Tensor) -> None:
    weight = quantize_nf4(dense)
    assert weight.to("cpu") is weight
    moved = weight.to("meta")
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}
    assert moved.shape == weight.shape
    # the table of 8-bit levels is one for each device
    assert moved.tensors()["nested_levels"] is quantize_nf4(dense).to("meta").tensors()["nested_levels"]


def test_it_is_immutable(dense: torch.Tensor) -> None:
    with pytest.raises(AttributeError):
        quantize_nf4(dense).codes = torch.zeros(1)  # type: ignore[misc]


def test_compiles(dense: torch.Tensor) -> None:
    weight = quantize_nf4(dense)
    expected = quantize_nf4(dense).squared_row_norm()

    @torch.compile(fullgraph=True, backend="eager")
    def function(x: torch.Tensor) -> torch.Tensor:
        return x @ weight.dequantize(x.dtype).T + weight.squared_row_norm()

    x = torch.randn(3, 200)
    torch.testing.assert_close(function(x), x @ weight.dequantize().T + expected)
    assert torch.equal(weight.squared_row_norm(), expected)


def test_made_in_inference_mode_used_in_training(dense: torch.Tensor) -> None:
    with torch.inference_mode():
        weight = quantize_nf4(dense)
    x = torch.randn(3, 200, requires_grad=True)
    (x @ weight.dequantize().clone().T).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.randn(4, 4, 4), r"weight: expected a matrix \[N, K\], got shape \[4, 4, 4\]"),
        (torch.randn(4), r"weight: expected a matrix \[N, K\], got shape \[4\]"),
        (torch.empty(0, 4), r"weight: expected at least one element, got shape \[0, 4\]"),
        (torch.tensor([[1.0, float("nan")]]), "weight: expected finite values, got NaN or inf"),
        (torch.tensor([[1.0, -float("inf")]]), "weight: expected finite values, got NaN or inf"),
        (torch.full((64, 64), 3e38), "weight: the sum of its block scales overflows"),
    ],
)
def test_refused_values(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_nf4(weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_refused_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"weight: expected float32, bfloat16 or float16, got {dtype}"):
        quantize_nf4(torch.ones(2, 2, dtype=dtype))


def test_refused_settings(dense: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"block_size: expected one of .*, got 48"):
        quantize_nf4(dense, block_size=48)
    with pytest.raises(ValueError, match=r"quant_type: expected one of .*, got 'nf5'"):
        quantize_nf4(dense, quant_type="nf5")


def test_refused_parts(dense: torch.Tensor) -> None:
    weight = quantize_nf4(dense)
    with pytest.raises(ValueError, match=r"codes: expected 2400 bytes \(uint8\)"):
        NF4Weight(weight.codes[1:], weight.scales, weight.layout, weight.dtype)
    with pytest.raises(ValueError, match=r"scales: expected .*'absmax'.*, got 4 tensors"):
        NF4Weight(weight.codes, weight.scales, Layout(24, 200, 64, 0, 0), weight.dtype)
    with pytest.raises(ValueError, match="absmax_codes: expected device"):
        weight.with_tensors(weight.tensors() | {"codes": weight.codes.to("meta")})
    with pytest.raises(ValueError, match=r"tensors: expected .*'absmax_codes'.*, got"):
        weight.with_tensors({"codes": weight.codes, "absmax": weight.scales[0]})
    with pytest.raises(TypeError, match=r"dtype: expected one of"):
        NF4Weight(weight.codes, weight.scales, weight.layout, torch.int8)
