"""AdamW with 8-bit states against a step written with torch's ops, and bitsandbytes' quantiser."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafam.backends.numba_cpu import adamw_8bit as module
from lorafam.backends.numba_cpu.adamw_8bit import BLOCK, adamw_8bit
from lorafam.optim import paged_state
from lorafam.weights.dynamic_levels import dynamic_levels

CPU = torch.device("cpu")
LEVELS = dynamic_levels(CPU), dynamic_levels(CPU, False)
SETTINGS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
Tensor = torch.Tensor


def blank(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    blocks = -(-size // BLOCK)
    codes = torch.zeros(2, size, dtype=torch.uint8)
    return codes[0], torch.zeros(blocks), codes[1], torch.zeros(blocks)


def decoded(codes: Tensor, absmax: Tensor, levels: Tensor) -> Tensor:
    return levels[codes.long()] * absmax.repeat_interleave(BLOCK)[: codes.numel()]


def encoded(values: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's: each value over its block's absmax, then the nearest level."""
    padded = torch.nn.functional.pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    absmax = padded.abs().amax(1)
    scaled = (padded / torch.where(absmax > 0, absmax, 1).unsqueeze(1)).view(-1)[: values.numel()]
    return torch.bucketize(scaled, (levels[:-1] + levels[1:]) / 2).to(torch.uint8), absmax


def plain_step(p: Tensor, g: Tensor, states: tuple[Tensor, ...], step: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    c = SETTINGS
    m = decoded(*states[:2], LEVELS[0]) * c["beta1"] + g * (1 - c["beta1"])
    v = decoded(*states[2:], LEVELS[1]) * c["beta2"] + g * g * (1 - c["beta2"])
    denominator = v.sqrt() / math.sqrt(1 - c["beta2"] ** step) + c["eps"]
    p = p * (1 - c["lr"] * c["weight_decay"]) - c["lr"] / (1 - c["beta1"] ** step) * (m / denominator)
    return p, (*encoded(m, LEVELS[0]), *encoded(v, LEVELS[1]))


@pytest.mark.parametrize("size", [1, 255, 256, 257, 100_000])
def test_equals_the_plain_step(size: int) -> None:
    torch.manual_seed(size)
    p = torch.randn(size)
    expected, states, plain = p.clone(), blank(size), blank(size)
    for step in range(1, 8):
        # values of a block over eight decades, so that every level is used
        g = torch.randn(size) * 10 ** (-8 * torch.rand(size))
        adamw_8bit(p, g, states, LEVELS, step=step, **SETTINGS)
        expected, plain = plain_step(expected, g, plain, step)
        torch.testing.assert_close(p, expected, rtol=3e-6, atol=1e-6)
        for mine, theirs in zip(states, plain, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=3e-7, atol=0)
        # one rounding could tip a code: from here on the same
        p, states = expected.clone(), tuple(state.clone() for state in plain)


@pytest.mark.parametrize("signed", [True, False])
def test_the_table_gives_the_nearest_level_of_every_value(signed: bool) -> None:
    """Every fp32 whose bits are next to a boundary of the table or of a level, and many between."""
    _, bounds, below = module._tables(LEVELS[not signed])
    edges = torch.arange(1 << 16, dtype=torch.int64) << 16
    words = torch.cat([edges, edges + 1, edges + 0xFFFF, torch.randint(0, 1 << 32, (200_000,))])
    values = (words - ((words >> 31) << 32)).to(torch.int32).view(torch.float32)
    near = torch.tensor(bounds[:-1])
    near = torch.cat([near, near.nextafter(torch.tensor(2.0)), near.nextafter(torch.tensor(-2.0))])
    values = torch.cat([values, near])
    values = values[values.abs() <= 1]
    expected = torch.bucketize(values, torch.tensor(bounds[:-1]))
    found = torch.tensor(below)[values.view(torch.int32).long().bitwise_and(0xFFFFFFFF) >> 16].long()
    assert torch.equal(found + (values > torch.tensor(bounds)[found]), expected)


@given(st.integers(1, 600), st.integers(-30, 8), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_no_further_from_the_value_than_bitsandbytes(size: int, exponent: int, seed: int) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(size, generator=generator) * 2.0**exponent
    states = blank(size)
    adamw_8bit(torch.zeros(size), g, states, LEVELS, step=1, **{**SETTINGS, "beta1": 0.0, "beta2": 0.0})
    for value, levels, codes, absmax in ((g, LEVELS[0], *states[:2]), (g * g, LEVELS[1], *states[2:])):
        theirs, quant_state = functional.quantize_blockwise(value, code=levels, blocksize=BLOCK)
        # theirs sets the absmax of a short last block to at least 1e-38
        torch.testing.assert_close(absmax, quant_state.absmax, rtol=1e-6, atol=2e-38)
        error = (decoded(codes, absmax, levels) - value).abs()
        their_error = (decoded(theirs, absmax, levels) - value).abs()
        assert (error <= their_error + 1e-6 * value.abs()).all()


def test_zero_gradients_leave_zero_states() -> None:
    p, states = torch.ones(300), blank(300)
    adamw_8bit(p, torch.zeros(300), states, LEVELS, step=1, **SETTINGS)
    torch.testing.assert_close(p, torch.full((300,), 1 - SETTINGS["lr"] * SETTINGS["weight_decay"]))
    for codes, absmax, levels in ((*states[:2], LEVELS[0]), (*states[2:], LEVELS[1])):
        assert not absmax.any()
        assert not levels[codes.long()].any()
    adamw_8bit(p, torch.zeros(300), states, LEVELS, step=2, **SETTINGS)
    assert p.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_block(bad: float) -> None:
    p, states = torch.ones(600), blank(600)
    g = torch.ones(600)
    g[300] = bad
    for step in (1, 2):
        adamw_8bit(p, g, states, LEVELS, step=step, **SETTINGS)
        g[300] = 1.0
    assert p[300].isnan()
    assert p[:256].isfinite().all()
    assert p[512:].isfinite().all()


def test_blocks_are_those_of_the_optimiser() -> None:
    assert BLOCK == paged_state.BLOCK
