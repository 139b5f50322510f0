"""Sharing a weight with bitsandbytes, both ways: equal bits, no copy, and no repacked weight taken for a plain one."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lorafam.kernels.formats import BLOCK_SIZES, QUANT_TYPES

from lorafam.weights import NF4Weight, quantize_nf4

bnb = pytest.importorskip("bitsandbytes")

Tensor = torch.Tensor
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REPACKED = r"bitsandbytes repacked this weight .*support_avx512bf16_for_cpu = False"


@pytest.fixture(autouse=True, scope="module")
def _bitsandbytes_uncompiled() -> Any:
    """bitsandbytes compiles its fallback for odd shapes anew for every shape."""
    with torch.compiler.set_stance("force_eager"):
        yield


def linear4bit(dense: Tensor, **settings: Any) -> Any:
    """bitsandbytes' quantised layer with the weight `dense`."""
    layer = bnb.nn.Linear4bit(dense.shape[1], dense.shape[0], bias=False, **{"quant_type": "nf4"} | settings)
    layer.weight = bnb.nn.Params4bit(dense, requires_grad=False, module=layer, **{"quant_type": "nf4"} | settings)
    layer.support_avx512bf16_for_cpu = False
    return layer.to("cpu")


def dense_weight(rows: int = 64, columns: int = 128, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same_storage(weight: NF4Weight, params: Any) -> None:
    """The very memory, and nothing but plain tensors."""
    state = params.quant_state
    pairs = [(weight.codes, params.data)]
    if weight.double_quant:
        theirs = (state.absmax, state.state2.absmax, state.state2.code, state.offset)
    else:
        theirs = (state.absmax,)
    pairs += zip(weight.scales, theirs, strict=True)
    for ours, other in pairs:
        assert type(ours) is torch.Tensor
        assert ours.data_ptr() == other.data_ptr()
        assert ours.nbytes == other.nbytes


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 300),
    block_size=st.sampled_from(BLOCK_SIZES),
    quant_type=st.sampled_from(QUANT_TYPES),
    double_quant=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
)
def test_both_ways(
    rows: int, columns: int, block_size: int, quant_type: str, double_quant: bool, dtype: torch.dtype, seed: int
) -> None:
    """Our weight given to bitsandbytes equals what bitsandbytes makes of the dense one, and comes back as it was."""
    dense = dense_weight(rows, columns, dtype, seed)
    ours = quantize_nf4(dense, block_size, double_quant, quant_type=quant_type)
    theirs, state = bnb.functional.quantize_4bit(
        dense, blocksize=block_size, compress_statistics=double_quant, quant_type=quant_type
    )
    params = ours.to_bitsandbytes()
    assert_same_storage(ours, params)
    assert torch.equal(params.data, theirs)
    assert params.quant_state == state
    assert params.quant_state.as_dict(packed=True).keys() == state.as_dict(packed=True).keys()
    for key, value in state.as_dict(packed=True).items():
        assert torch.equal(params.quant_state.as_dict(packed=True)[key], value), key
    again = NF4Weight.from_bitsandbytes(params)
    assert_same_storage(again, params)
    assert again.layout == ours.layout
    assert again.dtype == ours.dtype
    expected = bnb.functional.dequantize_4bit(theirs, state)
    assert torch.equal(bnb.functional.dequantize_4bit(params, params.quant_state), expected)
    # bitsandbytes transposes a weight of one byte; its AVX-512 path takes wrong scales where rows aren't whole blocks
    if columns % block_size == 0:
        assert torch.equal(again.dequantize(), expected)


@pytest.mark.parametrize("double_quant", [False, True])
def test_layer(double_quant: bool, backend: str) -> None:
    layer = linear4bit(dense_weight(), compress_statistics=double_quant)
    weight = NF4Weight.from_bitsandbytes(layer)
    assert_same_storage(weight, layer.weight)
    assert torch.equal(weight.dequantize(), bnb.functional.dequantize_4bit(layer.weight, layer.weight.quant_state))

    other = linear4bit(dense_weight(seed=1), compress_statistics=double_quant)
    other.weight = weight.to_bitsandbytes()
    x = torch.randn(5, 128, requires_grad=True)
    y = other(x)
    assert torch.equal(y, layer(x))
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(5, 64) @ weight.dequantize())  # type: ignore[arg-type]


@pytest.mark.parametrize("quant_storage", [torch.uint8, torch.bfloat16, torch.float16, torch.float32])
def test_other_storage_dtypes(quant_storage: torch.dtype) -> None:
    layer = linear4bit(dense_weight(), quant_storage=quant_storage)
    assert layer.weight.dtype == quant_storage
    weight = NF4Weight.from_bitsandbytes(layer)
    assert_same_storage(weight, layer.weight)
    assert torch.equal(weight.codes, quantize_nf4(dense_weight()).codes)


def test_state_on_the_layer_alone() -> None:
    """FSDP leaves a plain parameter behind; the layer still has the state."""
    layer = linear4bit(dense_weight())
    expected = NF4Weight.from_bitsandbytes(layer).dequantize()
    layer.weight = torch.nn.Parameter(layer.weight.data, requires_grad=False)
    assert torch.equal(NF4Weight.from_bitsandbytes(layer).dequantize(), expected)


def test_a_second_conversion_is_the_first() -> None:
    layer = linear4bit(dense_weight())
    weight = NF4Weight.from_bitsandbytes(layer)
    norm = weight.squared_row_norm()
    assert NF4Weight.from_bitsandbytes(layer) is weight
    assert NF4Weight.from_bitsandbytes(layer.weight) is weight
    # a copy, a replaced or a rewritten weight is another one
    assert NF4Weight.from_bitsandbytes(copy.deepcopy(layer)) is not weight
    with torch.no_grad():
        layer.weight.copy_(quantize_nf4(dense_weight(seed=1)).codes)
    rewritten = NF4Weight.from_bitsandbytes(layer)
    assert not torch.equal(rewritten.squared_row_norm(), norm)
    layer.weight.quant_state.absmax = layer.weight.quant_state.absmax.clone()
    assert_same_storage(NF4Weight.from_bitsandbytes(layer), layer.weight)
    layer.weight.data = layer.weight.data.clone()
    assert_same_storage(NF4Weight.from_bitsandbytes(layer), layer.weight)


def test_a_conversion_follows_a_storage_that_moves() -> None:
    """FSDP2 frees a gathered parameter's storage and fills it again elsewhere, without a new version."""
    layer = linear4bit(dense_weight())
    weight, codes = NF4Weight.from_bitsandbytes(layer), layer.weight.data.clone()
    expected, storage = weight.dequantize(), layer.weight.untyped_storage()
    size = storage.size()
    storage.resize_(0)
    # takes the place that was freed
    other = torch.full((size,), 7, dtype=torch.uint8)
    storage.resize_(size)
    layer.weight.data.copy_(codes)
    assert (other == 7).all()
    assert NF4Weight.from_bitsandbytes(layer) is weight
    assert torch.equal(weight.dequantize(), expected)


def test_made_in_inference_mode() -> None:
    with torch.inference_mode():
        layer = linear4bit(dense_weight())
    assert layer.weight.is_inference()
    assert_same_storage(NF4Weight.from_bitsandbytes(layer), layer.weight)


def test_a_conversion_lives_as_long_as_the_layer() -> None:
    layer = linear4bit(dense_weight())
    weight = weakref.ref(NF4Weight.from_bitsandbytes(layer))
    gc.collect()
    assert weight() is not None
    del layer
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_repacked_weight_is_refused(double_quant: bool, dtype: torch.dtype) -> None:
    """An evaluation forward repacks on CPUs with AVX512_BF16; elsewhere the packing function is called directly."""
    layer = linear4bit(dense_weight(dtype=dtype), compress_statistics=double_quant)
    before = NF4Weight.from_bitsandbytes(layer)
    expected = before.dequantize()
    if bnb.functional.has_avx512bf16():
        layer.support_avx512bf16_for_cpu = True
        layer.eval()(torch.randn(3, 128))
    else:
        layer.weight.data, _ = bnb.functional._convert_weight_packed_for_cpu(
            layer.weight.data, layer.weight.quant_state
        )
    assert layer.weight.quant_state.packing_format_for_cpu
    for source in (layer, layer.weight):
        with pytest.raises(ValueError, match=REPACKED):
            NF4Weight.from_bitsandbytes(source)
    # what was converted before still holds the weight as it was
    assert torch.equal(before.dequantize(), expected)
    # saving undoes the packing, but not the rounding of the scales
    layer.state_dict()
    assert not layer.weight.quant_state.packing_format_for_cpu
    with pytest.raises(ValueError, match=REPACKED):
        NF4Weight.from_bitsandbytes(layer)


def test_marked_as_repacked_is_refused() -> None:
    layer = linear4bit(dense_weight())
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=REPACKED):
        NF4Weight.from_bitsandbytes(layer)


def test_refused() -> None:
    dense = dense_weight()
    with pytest.raises(ValueError, match=r"Linear4bit: its weight isn't quantised yet; .*layer\.to\('cpu'\)"):
        NF4Weight.from_bitsandbytes(bnb.nn.Linear4bit(128, 64))
    with pytest.raises(ValueError, match="Params4bit: its weight isn't quantised yet"):
        NF4Weight.from_bitsandbytes(bnb.nn.Params4bit(dense))
    lost = linear4bit(dense)
    lost.quant_state, lost.weight = None, torch.nn.Parameter(lost.weight.data, requires_grad=False)
    with pytest.raises(ValueError, match="Linear4bit: the scales of its weight are lost"):
        NF4Weight.from_bitsandbytes(lost)
    for other in (torch.nn.Linear(4, 4), dense, bnb.nn.Linear8bitLt(4, 4), None):
        with pytest.raises(
            TypeError, match=f"expected a bitsandbytes Linear4bit or Params4bit, got {type(other).__name__}"
        ):
            NF4Weight.from_bitsandbytes(other)
    with pytest.raises(ValueError, match=r"shape: expected a matrix \[N, K\], got a weight of shape \[128\]"):
        NF4Weight.from_bitsandbytes(bnb.nn.Params4bit(dense[0], requires_grad=False, quant_type="nf4").to("cpu"))


def test_other_levels_are_refused() -> None:
    layer = linear4bit(dense_weight())
    layer.weight.quant_state.code = bnb.functional.get_4bit_type("af4", device="cpu")
    with pytest.raises(ValueError, match="code: expected the standard nf4 levels, got tensor"):
        NF4Weight.from_bitsandbytes(layer)
    layer.weight.quant_state.quant_type = "af4"
    with pytest.raises(ValueError, match=r"quant_type: expected one of .*, got 'af4'"):
        NF4Weight.from_bitsandbytes(layer)


def test_a_part_of_a_weight_is_refused() -> None:
    """As FSDP and tensor parallelism leave them."""
    layer = linear4bit(dense_weight())
    with pytest.raises(ValueError, match="codes: expected 4096 bytes"):
        NF4Weight.from_bitsandbytes(torch.chunk(layer.weight, 2)[0])
