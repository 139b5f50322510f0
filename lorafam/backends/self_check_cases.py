"""What the self-check compares: calls of every op that between them take every path (`triton_gpu.call_paths`).

Small, with tails in every direction, of inputs that aren't zero-mean. A case makes its arguments for any number of
draws, so that the ratio rule finds as many elements as it needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..ops.by_storage import NESTED_BLOCK_SIZE, Storage, joined

Tensor = torch.Tensor
Arguments = tuple[Any, ...]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# few, of the largest tile of the decode path, and many
DECODE_TOKENS, TILE_TOKENS = (3, 12), (40, 120)
# more than any architecture decodes inside the product
STAGED_TOKENS = 270
N, K, K_TAIL, RANK, LARGE_RANK = 72, 256, 200, 20, 132
# of a group: in one launch where all have one or none; weight by weight at so many tokens
_BIASES = {"biases": (True, True), "no bias": (False, False), "one bias": (True, False)}
_BIASES_ALONE = {"biases": (True, True)}
ALONE = TILE_TOKENS[0]
# pairs of AdaLoRA's factors, each of which gives two numbers
PAIRS = 16


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """fp32 on the CPU, whatever the user's defaults are."""
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


class Draw:
    """Random tensors and weights of one number."""

    def __init__(self, number: int, eager: ModuleType, device: torch.device) -> None:
        self.eager, self._device = eager, device
        self._number = number
        self._generator = torch.Generator("cpu").manual_seed(number)
        self.seed = torch.tensor(7 + number, device=device)

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return _normal(shape, self._generator).to(self._device, dtype)

    @functools.cached_property
    def dense(self) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(1000 + self._number)
        return _normal((N, K), generator).to(self._device)

    @functools.cached_property
    def levels(self) -> Tensor:
        return torch.linspace(-1, 1, 256, dtype=torch.float32, device=self._device)

    @functools.cached_property
    def _whole_blocks(self) -> Storage:
        codes, absmax = self.eager.quantize_4bit(self.dense, 64, "nf4")
        absmax_codes, nested_absmax, offset = self.eager.quantize_absmax(absmax, self.levels)
        return Storage(codes, [absmax_codes, nested_absmax, self.levels, offset], [N, K, 64, 0, NESTED_BLOCK_SIZE])

    @functools.cached_property
    def _tail(self) -> Storage:
        codes, absmax = self.eager.quantize_4bit(self.dense[:, :K_TAIL].contiguous(), 64, "nf4")
        return Storage(codes, [absmax], [N, K_TAIL, 64, 0, 0])

    def weight(self, kind: str, dtype: torch.dtype) -> Storage:
        if kind == "dense":
            return Storage(self.dense.to(dtype), [], [])
        return self._whole_blocks if kind == "NF4" else self._tail

    def vectors(self) -> tuple[Tensor, Tensor]:
        """c and a bias."""
        return self.random(N).abs() + 0.5, self.random(N)

    def factors(self) -> list[Tensor]:
        """`PAIRS` times A and B̂."""
        return [factor for _ in range(PAIRS) for factor in (self.random(RANK, K), self.random(N, RANK))]


class Case(NamedTuple):
    """An op, what is special about the call, and its arguments for a draw."""

    op: str
    what: str
    make: Callable[[Draw], Arguments]


def cases() -> Iterator[Case]:
    """In this order: what others are made of comes before them."""
    yield Case("quantize_absmax", "block scales", lambda draw: (draw.dense.abs().amax(1).repeat(4), draw.levels))
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        yield Case("quantize_4bit", name, functools.partial(_quantize, dtype=dtype))
        yield Case("dequantize_4bit", name, functools.partial(_dequantize, dtype=dtype))
        for tokens, biased in ((DECODE_TOKENS[1], True), (TILE_TOKENS[1], False)):
            make = functools.partial(_cross_entropy, dtype=dtype, tokens=tokens, biased=biased)
            yield Case("linear_cross_entropy", f"{name}, {tokens} tokens", make)
        for tokens in (*DECODE_TOKENS, *TILE_TOKENS):
            what = f"{name}, {tokens} tokens"
            yield Case("lora_project", what, functools.partial(_project, dtype=dtype, tokens=tokens))
            yield Case("dropout", what, functools.partial(_dropout, dtype=dtype, tokens=tokens))
            for rank in (8, RANK):
                make = functools.partial(_factors_grad, dtype=dtype, tokens=tokens, rank=rank)
                yield Case("lora_factors_grad", f"{what}, rank {rank}", make)
            for kind in ("dense", "NF4", "NF4, no whole blocks"):
                of_weight = functools.partial(_of_weight, kind=kind, dtype=dtype, tokens=tokens, rank=RANK)
                for op in ("lora_linear", "lora_linear_grad"):
                    yield Case(op, f"{kind}, {what}", functools.partial(of_weight, op))
                together = kind == "NF4" and tokens in DECODE_TOKENS and dtype != torch.float32
                for told, with_bias in (
                    _BIASES.items() if together else _BIASES_ALONE.items() if tokens == ALONE else ()
                ):
                    make = functools.partial(_group, kind=kind, dtype=dtype, tokens=tokens, with_bias=with_bias)
                    yield Case("lora_linear_group", f"{kind}, {what}, {told}", make)
        if dtype != torch.float32:
            for rank in (RANK, LARGE_RANK):
                what = f"NF4, {name}, {STAGED_TOKENS} tokens, rank {rank}"
                for op in ("lora_linear", "lora_linear_grad"):
                    make = functools.partial(_of_weight, op, kind="NF4", dtype=dtype, tokens=STAGED_TOKENS, rank=rank)
                    yield Case(op, what, make)
        for kind in ("dense", *(("NF4", "NF4, no whole blocks") if dtype == torch.float32 else ())):
            yield Case("squared_row_norm", f"{kind}, {name}", functools.partial(_squared, kind=kind, dtype=dtype))
            for rank in (RANK, LARGE_RANK):
                make = functools.partial(_row_norm, kind=kind, dtype=dtype, rank=rank)
                yield Case("row_norm", f"{kind}, {name}, rank {rank}", make)
    yield Case("adalora_importance", "factors", _importance)
    yield Case("adalora_scores", "factors", _scores)
    yield Case("adalora_penalty", "factors", _penalty)
    yield Case("adalora_penalty_grad", "factors", _penalty_grad)


def _quantize(draw: Draw, dtype: torch.dtype) -> Arguments:
    return draw.dense.to(dtype), 64, "nf4"


def _dequantize(draw: Draw, dtype: torch.dtype) -> Arguments:
    return *draw.weight("NF4", dtype), dtype


def _project(draw: Draw, dtype: torch.dtype, tokens: int) -> Arguments:
    return draw.random(tokens, K, dtype=dtype) + 1, draw.random(RANK, K), draw.seed, 0.1


def _dropout(draw: Draw, dtype: torch.dtype, tokens: int) -> Arguments:
    return draw.random(tokens, K, dtype=dtype) + 1, draw.seed, 0.1


def _cross_entropy(draw: Draw, dtype: torch.dtype, tokens: int, biased: bool) -> Arguments:
    target = (torch.arange(tokens, device=draw.seed.device) * 11 + draw.seed) % N
    # small, or one word has it all
    x = draw.random(tokens, K, dtype=dtype) / 16
    return x, draw.dense.to(dtype), draw.random(N) if biased else None, target, True


def _of_weight(op: str, draw: Draw, kind: str, dtype: torch.dtype, tokens: int, rank: int) -> Arguments:
    """Of a product or its dx."""
    weight, (c, bias) = draw.weight(kind, dtype), draw.vectors()
    columns = weight.layout[1] if weight.layout else K
    P = draw.random(tokens, rank)
    if op == "lora_linear":
        return draw.random(tokens, columns, dtype=dtype) + 1, *weight, P, draw.random(N, rank), c, bias
    return draw.random(tokens, N, dtype=dtype), *weight, c, P, draw.random(rank, columns), draw.seed, 0.1


def _group(draw: Draw, kind: str, dtype: torch.dtype, tokens: int, with_bias: tuple[bool, bool]) -> Arguments:
    weight = draw.weight(kind, dtype)
    columns = weight.layout[1] if weight.layout else K
    P, B_hat = ([draw.random(rows, RANK) for _ in range(2)] for rows in (tokens, N))
    bias = [draw.random(N) if there else None for there in with_bias]
    return draw.random(tokens, columns, dtype=dtype) + 1, *joined([weight] * 2), P, B_hat, bias


def _factors_grad(draw: Draw, dtype: torch.dtype, tokens: int, rank: int) -> Arguments:
    grad_y, x = draw.random(tokens, N, dtype=dtype), draw.random(tokens, K, dtype=dtype) + 1
    c, bias = draw.vectors()
    return grad_y, x, draw.random(tokens, rank), draw.random(N, rank), c, grad_y + 1, bias, c, draw.seed, 0.1, True


def _squared(draw: Draw, kind: str, dtype: torch.dtype) -> Arguments:
    return (*draw.weight(kind, dtype),)


def _row_norm(draw: Draw, kind: str, dtype: torch.dtype, rank: int) -> Arguments:
    weight = draw.weight(kind, dtype)
    columns = weight.layout[1] if weight.layout else K
    return *weight, draw.random(rank, columns), draw.random(N, rank), None


def _importance(draw: Draw) -> Arguments:
    factors, averages = draw.factors(), [factor.abs() for factor in draw.factors()]
    return factors, draw.factors(), averages, [average.clone() for average in averages], 0.8, 0.9


def _scores(draw: Draw) -> Arguments:
    return draw.factors(), draw.factors(), [0, 1] * PAIRS


def _penalty(draw: Draw) -> Arguments:
    return draw.factors(), [0, 1] * PAIRS


def _penalty_grad(draw: Draw) -> Arguments:
    factors, rank_dims = _penalty(draw)
    return factors, rank_dims, *draw.eager.adalora_penalty(factors, rank_dims), draw.random(2 * PAIRS)
