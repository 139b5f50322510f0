"""A call of every op, for who needs one: the self-checks, the dump of compiled kernels, the tests of schemas."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import torch

from .by_storage import Storage, joined

Tensor = torch.Tensor

# optional arguments: P and B̂ (Q and A), the mask, c, a bias, what a gradient of m needs
OPTIONAL = ("update", "dropout", "c", "bias", "magnitude")


class Tensors(Protocol):
    """Where a sample's tensors come from."""

    seed: Tensor

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor: ...

    def levels(self) -> Tensor:
        """Of double quantisation, fp32 [256]."""

    def factors(self) -> tuple[list[Tensor], list[int]]:
        """Of an AdaLoRA model, and which dimension of each is its rank's."""

    def penalties(self, factors: list[Tensor], rank_dims: list[int]) -> tuple[Tensor, ...]:
        """`adalora_penalty`'s results."""


class Sample(NamedTuple):
    """What a call is over: W [N, K], tokens of a dtype, a rank, and which optional arguments it has."""

    tensors: Tensors
    weight: Storage
    dtype: torch.dtype
    tokens: int
    rank: int
    given: Collection[str] = OPTIONAL
    # of a group: which members have a bias
    biased: tuple[bool, ...] = (True, True)

    def arguments(self, op: str) -> tuple[Any, ...]:
        """The call's."""
        return _ARGUMENTS[op](self)

    @property
    def x(self) -> Tensor:
        # sums that don't cancel
        return self.tensors.random(self.tokens, self.weight.shape[1], dtype=self.dtype) + 1

    @property
    def grad_y(self) -> Tensor:
        return self.tensors.random(self.tokens, self.weight.shape[0], dtype=self.dtype)

    @property
    def A(self) -> Tensor:
        return self.tensors.random(self.rank, self.weight.shape[1])

    @property
    def B_hat(self) -> Tensor:
        return self.tensors.random(self.weight.shape[0], self.rank)

    @property
    def P(self) -> Tensor:
        return self.tensors.random(self.tokens, self.rank)

    @property
    def c(self) -> Tensor | None:
        return self.tensors.random(self.weight.shape[0]).abs() + 0.5 if "c" in self.given else None

    @property
    def bias(self) -> Tensor | None:
        return self.tensors.random(self.weight.shape[0]) if "bias" in self.given else None

    @property
    def dropout(self) -> tuple[Tensor | None, float]:
        return (self.tensors.seed, 0.1) if "dropout" in self.given else (None, 0.0)


def _lora_linear(s: Sample) -> tuple[Any, ...]:
    update = (s.P, s.B_hat) if "update" in s.given else (None, None)
    return s.x, *s.weight, *update, s.c, s.bias


def _lora_linear_grad(s: Sample) -> tuple[Any, ...]:
    update = (s.P, s.A, *s.dropout) if "update" in s.given else (None, None, None, 0.0)
    return s.grad_y, *s.weight, s.c, *update


def _lora_linear_group(s: Sample) -> tuple[Any, ...]:
    each = [(s.P, s.B_hat, s.tensors.random(s.weight.shape[0]) if biased else None) for biased in s.biased]
    return s.x, *joined([s.weight] * len(each)), *map(list, zip(*each, strict=True))


def _lora_factors_grad(s: Sample) -> tuple[Any, ...]:
    grad_y, c = s.grad_y, s.c
    of_m = (grad_y + 1, s.bias, s.tensors.random(s.weight.shape[0]).abs() + 0.5)
    given = of_m if "magnitude" in s.given else (None, None, None)
    return grad_y, s.x, s.P, s.B_hat, c, *given, *s.dropout, "bias" in s.given


def _linear_cross_entropy(s: Sample) -> tuple[Any, ...]:
    words = s.weight.shape[0]
    target = (torch.arange(s.tokens, device=s.tensors.seed.device) * 11 + s.tensors.seed) % words
    # small, or one word has it all
    x = s.tensors.random(s.tokens, s.weight.shape[1], dtype=s.dtype) / 16
    return x, _dense(s), s.bias, target, bool(s.given)


def _row_norm(s: Sample) -> tuple[Any, ...]:
    squared = s.tensors.random(s.weight.shape[0]).square() + s.weight.shape[1] if "magnitude" in s.given else None
    return *s.weight, s.A, s.B_hat, squared


def _dense(s: Sample) -> Tensor:
    return s.tensors.random(*s.weight.shape, dtype=s.dtype)


def _adalora_importance(s: Sample) -> tuple[Any, ...]:
    (factors, _), (grads, _), (others, _) = (s.tensors.factors() for _ in range(3))
    return factors, grads, [one.abs() for one in others], [one.abs() for one in others], 0.8, 0.9


def _adalora_scores(s: Sample) -> tuple[Any, ...]:
    factors, rank_dims = s.tensors.factors()
    return factors, s.tensors.factors()[0], rank_dims


def _adalora_penalty_grad(s: Sample) -> tuple[Any, ...]:
    factors, rank_dims = s.tensors.factors()
    return factors, rank_dims, *s.tensors.penalties(factors, rank_dims), s.tensors.random(len(factors))


_ARGUMENTS: dict[str, Callable[[Sample], tuple[Any, ...]]] = {
    "adalora_importance": _adalora_importance,
    "adalora_penalty": lambda s: s.tensors.factors(),
    "adalora_penalty_grad": _adalora_penalty_grad,
    "adalora_scores": _adalora_scores,
    "dequantize_4bit": lambda s: (*s.weight, s.dtype),
    "dropout": lambda s: (s.x, s.tensors.seed, 0.1),
    "linear_cross_entropy": _linear_cross_entropy,
    "lora_factors_grad": _lora_factors_grad,
    "lora_linear": _lora_linear,
    "lora_linear_grad": _lora_linear_grad,
    "lora_linear_group": _lora_linear_group,
    "lora_project": lambda s: (s.x, s.A, *s.dropout),
    "quantize_4bit": lambda s: (_dense(s), 64, "nf4"),
    "quantize_absmax": lambda s: (_dense(s).float().abs().amax(1).repeat(4), s.tensors.levels()),
    "row_norm": _row_norm,
    "squared_row_norm": lambda s: (*s.weight,),
}
