"""4-bit codes, scales and decoding against bitsandbytes on the CPU: equal bits, on every backend.

On a GPU the mean of the block scales, the offset, is summed in another order; what follows from it has equal bits.
"""

import importlib
import math
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lorafam.kernels.formats import BLOCK_SIZES, FP4, NF4, QUANT_TYPES

from lorafam.backends.eager import four_bit
from lorafam.ops.quantize_4bit import level_bounds
from lorafam.weights.dynamic_levels import dynamic_levels
from tests.conftest import CUDA_MODULE, INTERPRETING, MODULES, need_ptxsim, simulated

bnb_functional = pytest.importorskip("bitsandbytes.functional")

Tensor = torch.Tensor
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEVELS = dynamic_levels(torch.device("cpu"))
PARAMS = [simulated(name) if name == "triton_gpu" and not INTERPRETING else name for name in MODULES]
CASES = {
    "rows": st.integers(1, 40),
    "columns": st.integers(1, 40) | st.integers(1, 10).map(lambda n: 16 * n) | st.integers(1, 5).map(lambda n: 64 * n),
    "block_size": st.sampled_from(BLOCK_SIZES),
    "quant_type": st.sampled_from(QUANT_TYPES),
    "dtype": st.sampled_from(DTYPES),
    "double_quant": st.booleans(),
    "seed": st.integers(0, 2**32),
}


Ops = ModuleType | SimpleNamespace


def implementation(name: str) -> Ops:
    if name == CUDA_MODULE:
        return on("cuda", importlib.import_module("lorafam.backends.triton_gpu"))
    if name == "triton_gpu" and not INTERPRETING:
        need_ptxsim()
    return importlib.import_module(f"lorafam.backends.{name}")


def on(device: str, module: ModuleType) -> SimpleNamespace:
    """The ops of `module`, run on `device`, for tensors of the CPU."""

    def wrapped(op: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: moved(op(*moved(arguments, device)), "cpu")

    names = ("quantize_4bit", "quantize_absmax", "dequantize_4bit")
    return SimpleNamespace(device=device, **{name: wrapped(getattr(module, name)) for name in names})


def moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(moved(part, device) for part in value) if isinstance(value, list | tuple) else value


@pytest.fixture(params=PARAMS)
def ops(request: pytest.FixtureRequest) -> Ops:
    return implementation(request.param)


@pytest.fixture(autouse=True, scope="module")
def _bitsandbytes_uncompiled() -> Any:
    """bitsandbytes compiles its fallback for odd shapes anew for every shape."""
    with torch.compiler.set_stance("force_eager"):
        yield


def random_weight(rows: int, columns: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Rows of very different size, some of them zero, some elements exactly on a level."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= 10 ** (torch.rand(rows, 1, generator=generator) * 8 - 6)
    weight[torch.rand(rows, generator=generator) < 0.2] = 0
    weight[torch.rand(rows, columns, generator=generator) < 0.1] = 0.5
    return weight.to(dtype)


def flat_reference(packed: Tensor, state: Any, dtype: torch.dtype) -> Tensor:
    """bitsandbytes' decoded weight. Asked for one long row, since its AVX-512 path takes the scales of other blocks
    where a row isn't a whole number of blocks, unlike its own portable path and its CUDA kernels.
    """
    shape = state.shape
    flat = bnb_functional.QuantState(
        absmax=state.absmax,
        shape=(1, math.prod(shape)),
        code=state.code,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        dtype=dtype,
        offset=state.offset,
        state2=state.state2,
    )
    return bnb_functional.dequantize_4bit(packed, flat).reshape(shape)


def scales_and_layout(state: Any) -> tuple[list[Tensor], list[int]]:
    layout = [*state.shape, state.blocksize, QUANT_TYPES.index(state.quant_type)]
    if state.nested:
        return [state.absmax, state.state2.absmax, state.state2.code, state.offset], [*layout, 256]
    return [state.absmax], [*layout, 0]


def assert_same_bits(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    # FP4's second zero is +0 or -0 in bitsandbytes, depending on the shape
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[ours.element_size()]
    torch.testing.assert_close((ours + 0).view(words), (theirs + 0).view(words), rtol=0, atol=0)


def assert_offset(ops: Ops, offset: Tensor, absmax: Tensor) -> None:
    """The mean: of the same bits on the CPU, within the error of another order of summation on a GPU."""
    assert offset.dtype == torch.float32
    assert offset.shape == ()
    if getattr(ops, "device", "cpu") == "cpu":
        assert torch.equal(offset, absmax.mean())
    else:
        wide = absmax.double()
        assert abs(float(offset.double() - wide.mean())) <= 1e-6 * float(wide.abs().mean())


def assert_absmax_quantised(ops: Ops, absmax: Tensor, state: Any) -> None:
    """Codes, nested absmax and offset are those of bitsandbytes' `state`; on a GPU, those its own offset leads to."""
    found = ops.quantize_absmax(absmax, LEVELS)
    assert_offset(ops, found[2], absmax)
    wanted = (state.absmax, state.state2.absmax, state.offset)
    if getattr(ops, "device", "cpu") != "cpu":
        codes, nested = bnb_functional.quantize_blockwise(absmax - found[2], blocksize=256)
        wanted = (codes, nested.absmax, found[2])
    for ours, theirs in zip(found, wanted, strict=True):
        assert_same_bits(ours, theirs)


@settings(max_examples=80, deadline=None)
@given(**CASES)
@pytest.mark.parametrize("backend", PARAMS)
def test_quantise_equals_bitsandbytes(
    backend: str,
    rows: int,
    columns: int,
    block_size: int,
    quant_type: str,
    dtype: torch.dtype,
    double_quant: bool,
    seed: int,
) -> None:
    ops = implementation(backend)
    weight = random_weight(rows, columns, dtype, seed)
    packed, state = bnb_functional.quantize_4bit(
        weight, blocksize=block_size, quant_type=quant_type, compress_statistics=double_quant
    )
    codes, absmax = ops.quantize_4bit(weight, block_size, quant_type)
    assert_same_bits(codes, packed)
    if double_quant:
        assert_absmax_quantised(ops, absmax, state)
    else:
        assert_same_bits(absmax, state.absmax)


@settings(max_examples=80, deadline=None)
@given(**CASES, out_dtype=st.sampled_from((*DTYPES, torch.float64)))
@pytest.mark.parametrize("backend", PARAMS)
def test_decode_equals_bitsandbytes(
    backend: str,
    rows: int,
    columns: int,
    block_size: int,
    quant_type: str,
    dtype: torch.dtype,
    double_quant: bool,
    seed: int,
    out_dtype: torch.dtype,
) -> None:
    # Triton's interpreter truncates to bf16
    assume(not (INTERPRETING and out_dtype == torch.bfloat16))
    ops = implementation(backend)
    packed, state = bnb_functional.quantize_4bit(
        random_weight(rows, columns, dtype, seed),
        blocksize=block_size,
        quant_type=quant_type,
        compress_statistics=double_quant,
    )
    scales, layout = scales_and_layout(state)
    ours = ops.dequantize_4bit(packed, scales, layout, out_dtype)
    if out_dtype == torch.float64:
        assert ours.dtype == torch.float64
        assert torch.equal(ours, flat_reference(packed, state, torch.float32).double())
        return
    assert_same_bits(ours, flat_reference(packed, state, out_dtype))
    if columns % block_size == 0:
        state.dtype = out_dtype
        assert_same_bits(ours, bnb_functional.dequantize_4bit(packed, state).view(rows, columns))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_ties_take_the_lower_level(ops: Ops, quant_type: str, dtype: torch.dtype) -> None:
    """Values on every midpoint and on its two neighbours, in a block whose absmax is 1: nothing is rounded before."""
    skip_subnormal_bf16_in_the_interpreter(dtype)
    bounds, order = level_bounds(quant_type)
    on = bounds.to(dtype)
    around = torch.stack([torch.nextafter(on, on.new_tensor(-2)), on, torch.nextafter(on, on.new_tensor(2))])
    weight = torch.cat([on.new_ones(1), around.flatten(), on.new_zeros(64 - 1 - 45)]).view(1, 64)
    codes, absmax = ops.quantize_4bit(weight, 64, quant_type)
    assert absmax.tolist() == [1.0]
    nibbles = torch.stack([codes[:, 0] >> 4, codes[:, 0] & 15], dim=1).flatten()
    expected = [int(order[sum(v > b for b in bounds.tolist())]) for v in weight.flatten().tolist()]
    assert nibbles.tolist() == expected
    packed, _ = bnb_functional.quantize_4bit(weight, blocksize=64, quant_type=quant_type)
    assert torch.equal(codes, packed)
    if dtype == torch.float32:
        below, tie, above = nibbles[1:46].view(3, 15)
        assert torch.equal(below, tie)
        assert not torch.equal(tie, above)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_near_ties(ops: Ops, quant_type: str) -> None:
    """Whole blocks are multiplied by the reciprocal of absmax, a shorter last one is divided: near a tie that shows."""
    bounds, _ = level_bounds(quant_type)
    absmax = torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    on = absmax * bounds
    values = torch.cat([absmax, torch.nextafter(on, -absmax), on, torch.nextafter(on, absmax)], dim=1)
    divided, multiplied = (torch.bucketize(v, bounds) for v in (values / absmax, values * absmax.reciprocal()))
    assert (divided != multiplied).sum() > 10
    whole = torch.nn.functional.pad(values, (0, 64 - values.shape[1]))
    packed, state = bnb_functional.quantize_4bit(whole, blocksize=64, quant_type=quant_type)
    codes, scale = ops.quantize_4bit(whole, 64, quant_type)
    assert torch.equal(codes, packed)
    assert torch.equal(scale, state.absmax)
    for row in values.split(1):
        packed, _ = bnb_functional.quantize_4bit(row, blocksize=64, quant_type=quant_type)
        assert torch.equal(ops.quantize_4bit(row, 64, quant_type)[0], packed)


def test_absmax_is_rounded_to_a_grid_first(ops: Ops) -> None:
    """Not to the nearest level: bitsandbytes' CPU library looks the code up in a table of 65,536 steps."""
    bounds = (LEVELS[:-1] + LEVELS[1:]) / 2
    steps = torch.arange(-400, 401, dtype=torch.int32)
    near = (bounds.view(torch.int32).unsqueeze(1) + 997 * steps).view(torch.float32)
    absmax = torch.nn.functional.pad(near, (255 - near.shape[1] % 255, 0)).view(-1, 255)
    absmax = torch.nn.functional.pad(absmax, (1, 0), value=1.0)
    absmax = torch.cat([absmax, -absmax]).flatten().clamp(-1, 1)
    codes, nested_absmax, offset = ops.quantize_absmax(absmax, LEVELS)
    expected, state = bnb_functional.quantize_blockwise(absmax - offset, blocksize=256)
    assert_offset(ops, offset, absmax)
    assert torch.equal(codes, expected)
    assert torch.equal(nested_absmax, state.absmax)
    nearest = torch.bucketize((absmax - offset) / nested_absmax.repeat_interleave(256), bounds)
    assert not torch.equal(codes, nearest.to(torch.uint8))


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_zero_blocks(ops: Ops, quant_type: str) -> None:
    """Whole blocks of zeros have absmax 0, a shorter last one the smallest divisor; both decode to 0."""
    weight = torch.zeros(3, 70)
    codes, absmax = ops.quantize_4bit(weight, 64, quant_type)
    packed, state = bnb_functional.quantize_4bit(weight, blocksize=64, quant_type=quant_type, compress_statistics=True)
    assert torch.equal(codes, packed)
    assert absmax.tolist() == [0, 0, 0, torch.tensor(1e-38).item()]
    assert not ops.dequantize_4bit(codes, [absmax], [3, 70, 64, QUANT_TYPES.index(quant_type), 0], torch.float32).any()
    assert_absmax_quantised(ops, absmax, state)
    absmax_codes, nested_absmax, offset = ops.quantize_absmax(torch.full((300,), 0.25), LEVELS)
    assert not absmax_codes.any()
    assert nested_absmax.tolist() == [0, 0]
    assert offset == 0.25


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_precision_value(ops: Ops, dtype: torch.dtype) -> None:
    """All finite bf16 or fp16 numbers, subnormal ones too, in the order of their size, so that a block holds equals."""
    skip_subnormal_bf16_in_the_interpreter(dtype)
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values[values.isfinite()]
    weight = values[values.abs().sort(stable=True).indices].view(1, -1)
    for ours, theirs in zip(ops.quantize_4bit(weight, 32, "nf4"), bnb_quantized(weight), strict=True):
        assert torch.equal(ours, theirs)


def skip_subnormal_bf16_in_the_interpreter(dtype: torch.dtype) -> None:
    if INTERPRETING and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter widens subnormal bf16 to wrong values")


def bnb_quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    packed, state = bnb_functional.quantize_4bit(weight, blocksize=32, quant_type="nf4")
    return packed, state.absmax


def test_weights_that_are_not_contiguous_and_need_gradients(ops: Ops) -> None:
    weight = torch.randn(70, 33).T.requires_grad_()
    codes, absmax = ops.quantize_4bit(weight, 32, "nf4")
    expected = bnb_quantized(weight.detach().contiguous())
    assert torch.equal(codes, expected[0])
    assert torch.equal(absmax, expected[1])
    assert not absmax.requires_grad


def test_sizes_that_are_shared_out_to_threads(ops: Ops) -> None:
    weight = random_weight(*((33, 1031) if INTERPRETING else (257, 1031)), torch.bfloat16, seed=2)
    for ours, theirs in zip(ops.quantize_4bit(weight, 32, "nf4"), bnb_quantized(weight), strict=True):
        assert torch.equal(ours, theirs)
    absmax = torch.rand(3_001 if INTERPRETING else 300_001, generator=torch.Generator().manual_seed(3))
    codes, nested_absmax, offset = ops.quantize_absmax(absmax, LEVELS)
    expected, state = bnb_functional.quantize_blockwise(absmax - offset, blocksize=256)
    assert torch.equal(codes, expected)
    assert torch.equal(nested_absmax, state.absmax)
    assert_offset(ops, offset, absmax)


@pytest.mark.parametrize("double_quant", [False, True])
def test_eager_pieces_join(monkeypatch: pytest.MonkeyPatch, double_quant: bool) -> None:
    """The same results from small pieces, the last of them cut inside a block and inside a byte."""
    weight = random_weight(31, 399, torch.bfloat16, seed=0)
    whole = four_bit.quantize_4bit(weight, 4096, "nf4")
    scales, nested = [whole[1]], 0
    if double_quant:
        absmax_codes, nested_absmax, offset = four_bit.quantize_absmax(whole[1], LEVELS)
        scales, nested = [absmax_codes, nested_absmax, LEVELS, offset], 256
    arguments = (whole[0], scales, [31, 399, 4096, 0, nested], torch.float16)
    decoded = four_bit.dequantize_4bit(*arguments)
    monkeypatch.setattr(four_bit, "_CHUNK", 4096)
    for part, all_at_once in zip(four_bit.quantize_4bit(weight, 4096, "nf4"), whole, strict=True):
        assert torch.equal(part, all_at_once)
    assert torch.equal(four_bit.dequantize_4bit(*arguments), decoded)


def test_absmax_equals_bitsandbytes() -> None:
    """The product is rounded before the offset is added."""
    packed, state = bnb_functional.quantize_4bit(
        random_weight(40, 4160, torch.float32, seed=1), blocksize=32, quant_type="nf4", compress_statistics=True
    )
    scales, layout = scales_and_layout(state)
    expected = bnb_functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert_same_bits(four_bit.absmax(scales, layout), expected)
    codes, nested_absmax, levels, offset = scales
    exact = levels[codes.int()].double() * nested_absmax.repeat_interleave(256)[: codes.numel()] + offset
    assert not torch.equal(exact.float(), expected)
    assert packed.shape == (40 * 4160 // 2, 1)


@pytest.mark.parametrize(("quant_type", "levels"), [("nf4", NF4.levels), ("fp4", FP4.levels)])
def test_levels_are_those_of_bitsandbytes(quant_type: str, levels: tuple[float, ...]) -> None:
    assert_same_bits(torch.tensor(levels), bnb_functional.get_4bit_type(quant_type, device="cpu"))
