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

from ..ops.by_storage import NESTED_BLOCK_SIZE, Storage
from ..ops.samples import OPTIONAL, Sample

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

    def levels(self) -> Tensor:
        return torch.linspace(-1, 1, 256, dtype=torch.float32, device=self._device)

    @functools.cached_property
    def _whole_blocks(self) -> Storage:
        codes, absmax = self.eager.quantize_4bit(self.dense, 64, "nf4")
        absmax_codes, nested_absmax, offset = self.eager.quantize_absmax(absmax, self.levels())
        return Storage(codes, [absmax_codes, nested_absmax, self.levels(), offset], [N, K, 64, 0, NESTED_BLOCK_SIZE])

    @functools.cached_property
    def _tail(self) -> Storage:
        codes, absmax = self.eager.quantize_4bit(self.dense[:, :K_TAIL].contiguous(), 64, "nf4")
        return Storage(codes, [absmax], [N, K_TAIL, 64, 0, 0])

    def weight(self, kind: str, dtype: torch.dtype) -> Storage:
        if kind == "dense":
            return Storage(self.dense.to(dtype), [], [])
        return self._whole_blocks if kind == "NF4" else self._tail

    def factors(self) -> tuple[list[Tensor], list[int]]:
        """`PAIRS` times A and B̂."""
        each = [factor for _ in range(PAIRS) for factor in (self.random(RANK, K), self.random(N, RANK))]
        return each, [0, 1] * PAIRS

    def penalties(self, factors: list[Tensor], rank_dims: list[int]) -> tuple[Tensor, ...]:
        return self.eager.adalora_penalty(factors, rank_dims)


class Case(NamedTuple):
    """An op, what is special about the call, and its arguments for a draw."""

    op: str
    what: str
    make: Callable[[Draw], Arguments]


def cases() -> Iterator[Case]:
    """In this order: what others are made of comes before them."""
    yield _case("quantize_absmax", "block scales")
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        yield _case("quantize_4bit", name, dtype=dtype)
        yield _case("dequantize_4bit", name, "NF4", dtype=dtype)
        for tokens, given in ((DECODE_TOKENS[1], OPTIONAL), (TILE_TOKENS[1], ("dx",))):
            yield _case("linear_cross_entropy", f"{name}, {tokens} tokens", dtype=dtype, tokens=tokens, given=given)
        for tokens in (*DECODE_TOKENS, *TILE_TOKENS):
            what = f"{name}, {tokens} tokens"
            for op in ("lora_project", "dropout"):
                yield _case(op, what, dtype=dtype, tokens=tokens)
            for rank in (8, RANK):
                yield _case("lora_factors_grad", f"{what}, rank {rank}", dtype=dtype, tokens=tokens, rank=rank)
            for kind in ("dense", "NF4", "NF4, no whole blocks"):
                for op in ("lora_linear", "lora_linear_grad"):
                    yield _case(op, f"{kind}, {what}", kind, dtype=dtype, tokens=tokens)
                together = kind == "NF4" and tokens in DECODE_TOKENS and dtype != torch.float32
                for told, biased in _BIASES.items() if together else _BIASES_ALONE.items() if tokens == ALONE else ():
                    what_group = f"{kind}, {what}, {told}"
                    yield _case("lora_linear_group", what_group, kind, dtype=dtype, tokens=tokens, biased=biased)
        if dtype != torch.float32:
            for rank in (RANK, LARGE_RANK):
                what = f"NF4, {name}, {STAGED_TOKENS} tokens, rank {rank}"
                for op in ("lora_linear", "lora_linear_grad"):
                    yield _case(op, what, "NF4", dtype=dtype, tokens=STAGED_TOKENS, rank=rank)
        for kind in ("dense", *(("NF4", "NF4, no whole blocks") if dtype == torch.float32 else ())):
            yield _case("squared_row_norm", f"{kind}, {name}", kind, dtype=dtype)
            for rank in (RANK, LARGE_RANK):
                # ‖w_j‖² isn't given: it is another kernel's
                yield _case("row_norm", f"{kind}, {name}, rank {rank}", kind, dtype=dtype, rank=rank, given=())
    for op in ("adalora_importance", "adalora_scores", "adalora_penalty", "adalora_penalty_grad"):
        yield _case(op, "factors")


def _case(
    op: str,
    what: str,
    kind: str = "dense",
    dtype: torch.dtype = torch.float32,
    tokens: int = 0,
    rank: int = RANK,
    **more: Any,
) -> Case:
    def make(draw: Draw) -> Arguments:
        return Sample(draw, draw.weight(kind, dtype), dtype, tokens, rank, **more).arguments(op)

    return Case(op, what, make)
