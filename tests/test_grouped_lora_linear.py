"""Several projections of one x, against the fp64 reference by the ratio rule, and against single projections."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafam import functional as F
from lorafam import quantize_nf4, reference
from lorafam.reference import peft_order
from tests.conftest import INTERPRETING, device
from tests.tolerances import assert_as_good_as_eager

Tensor = torch.Tensor
K, NS, RANKS = 192, (320, 1088, 200), (8, 4, 20)
SCALINGS = (2.0, 0.5, 1.5)
# tokens → seeds, so that dx has 1,024 elements
SEEDS = {1: 6, 5: 2, 40: 1}


def make(
    dtype: torch.dtype, tokens: int, storage: str, mean: float = 0.0, seed: int = 0
) -> tuple[dict[str, Any], list[Tensor]]:
    """Arguments with a bias in the middle, and the weights as dense tensors."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device())

    dense = [random(N, K, scale=0.1) for N in NS]
    weights: list[Any] = [weight.to(dtype) for weight in dense]
    if storage != "dense":
        weights = [quantize_nf4(weight, 64, storage == "nf4 double") for weight in dense]
        dense = [weight.dequantize(torch.float32) for weight in weights]
    given = {
        "x": (random(tokens, K) + mean).to(dtype),
        "weights": weights,
        "As": [random(rank, K, scale=0.1) for rank in RANKS],
        "Bs": [random(N, rank, scale=0.1) for N, rank in zip(NS, RANKS, strict=True)],
        "scalings": list(SCALINGS),
        "biases": [None, random(NS[1]).to(dtype), None],
    }
    return given, [weight.to(dtype) for weight in dense]


def leaves_of(given: dict[str, Any]) -> dict[str, Tensor]:
    named = {"x": given["x"], "bias": given["biases"][1]}
    return named | {f"{name}{i}": given[f"{name}s"][i] for name in "AB" for i in range(len(NS))}


def run(forward: Any, given: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Every output, and the gradient of every tensor that may have one."""
    wide = dtype == torch.float64
    leaves = {
        name: (tensor.double() if wide else tensor.clone()).requires_grad_()
        for name, tensor in leaves_of(given).items()
    }
    parts = {f"{name}s": [leaves[f"{name}{i}"] for i in range(len(NS))] for name in "AB"}
    ys = forward(**{**given, "x": leaves["x"], **parts, "biases": [None, leaves["bias"], None]})
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(y.shape, generator=generator).to(y.device) for y in ys]
    found = torch.autograd.grad(ys, list(leaves.values()), [grad.to(y) for grad, y in zip(grads, ys, strict=True)])
    named = {f"y{i}": y.detach() for i, y in enumerate(ys)}
    return named | {f"d{name}": grad for name, grad in zip(leaves, found, strict=True)}


def in_peft_order(x: Tensor, weights: list[Tensor], *rest: Any, **named: Any) -> list[Tensor]:
    columns = zip(weights, *(named[name] for name in ("As", "Bs", "scalings", "biases")), strict=True)
    return [peft_order.lora_linear(x, *each) for each in columns]


def compare(storage: str, dtype: torch.dtype, tokens: int) -> None:
    results: list[list[dict[str, Tensor]]] = [[], [], []]
    for seed in range(SEEDS[tokens]):
        given, dense = make(dtype, tokens, storage, mean=0.5, seed=seed)
        wide = {**given, "weights": [weight.double() for weight in dense]}
        results[0].append(run(F.grouped_lora_linear, given, dtype))
        results[1].append(run(in_peft_order, {**given, "weights": dense}, dtype))
        results[2].append(run(reference.grouped_lora_linear, wide, torch.float64))
    for kind in ("y", "dx", "dA", "dB", "dbias"):
        names = [name for name in results[2][0] if name.startswith(kind)]
        ours, eager, exact = ([one[name] for one in several for name in names] for several in results)
        assert_as_good_as_eager(ours, eager, exact, name=kind)


@pytest.mark.parametrize("backend", [] if INTERPRETING else ["numba", "eager"], indirect=True)
@pytest.mark.parametrize("tokens", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("storage", ["dense", "nf4", "nf4 double"])
def test_outputs_and_gradients(storage: str, dtype: torch.dtype, tokens: int, backend: str) -> None:
    compare(storage, dtype, tokens)


@pytest.mark.parametrize("storage", ["dense", "nf4 double"])
def test_every_backend(storage: str, backend: str) -> None:
    compare(storage, torch.float32, 5)


@pytest.mark.parametrize("storage", ["dense", "nf4 double"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_without_gradients_the_same_bits(tokens: int, storage: str, backend: str) -> None:
    given, _ = make(torch.float32, tokens, storage)
    for factor in given["As"]:
        factor.requires_grad_()
    recorded = F.grouped_lora_linear(**given)
    with torch.no_grad():
        alone = F.grouped_lora_linear(**given)
    for a, b in zip(recorded, alone, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(INTERPRETING, reason="of the CPU backend")
@pytest.mark.parametrize("scaling", ["number", "trained", "by rank"])
@pytest.mark.parametrize("storage", ["nf4 double", "dense"])
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_one_piece_has_the_bits_of_single_calls(
    tokens: int, storage: str, scaling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where two weights share a factor, a bias and their levels, and where kernels are started again."""
    monkeypatch.setenv("LORAFAM_BACKEND", "numba")
    for seed in range(2):
        given, _ = make(torch.float32, tokens, storage, seed=seed)
        given["As"][2] = given["As"][0]
        given["Bs"][2] = given["Bs"][2][:, : RANKS[0]].contiguous()
        given["biases"] = [torch.ones(NS[0]), torch.ones(NS[1]), None]
        ranks = [A.shape[0] for A in given["As"]]
        if scaling == "trained":
            given["scalings"] = [torch.tensor(value).requires_grad_() for value in SCALINGS]
        if scaling == "by rank":
            given["scalings"] = [torch.rand(rank).requires_grad_() for rank in ranks]
        leaves = [given["x"], *given["As"][:2], *given["Bs"], *given["biases"][:2]]
        for leaf in leaves:
            leaf.requires_grad_()
        leaves += [one for one in given["scalings"] if isinstance(one, Tensor)]
        columns = zip(*(given[name] for name in ("weights", "As", "Bs", "scalings", "biases")), strict=True)
        single = [F.lora_linear(given["x"], *each) for each in columns]
        grouped = F.grouped_lora_linear(**given)
        grads = [torch.randn_like(y) for y in single]
        for index, (a, b) in enumerate(zip(grouped, single, strict=True)):
            assert torch.equal(a, b), index
        found = [torch.autograd.grad(ys, leaves, grads) for ys in (grouped, single)]
        # autograd adds the single calls' dx, and those of the shared A, the other way round
        for leaf, a, b in zip(leaves, *found, strict=True):
            exact = leaf is not given["x"] and leaf is not given["As"][0]
            assert torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-5, atol=1e-5), leaf.shape


@pytest.mark.parametrize("leading", [(), (0,), (2, 0), (2, 3)])
def test_leading_dimensions_and_strides(leading: tuple[int, ...], backend: str) -> None:
    given, _ = make(torch.float32, 1, "nf4")
    x = torch.randn(*leading, K, 2).to(device())[..., 0].requires_grad_()
    ys = F.grouped_lora_linear(**{**given, "x": x})
    assert [y.shape for y in ys] == [(*leading, N) for N in NS]
    sum(y.sum() for y in ys).backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_an_output_that_nobody_uses() -> None:
    """It has no part in the gradients, and its factors get none."""
    given, _ = make(torch.float32, 5, "nf4")
    leaves = [given["x"], *given["As"], *given["Bs"]]
    for leaf in leaves:
        leaf.requires_grad_()
    ys = F.grouped_lora_linear(**given)
    (ys[0].sum() + ys[2].sum()).backward()
    assert given["As"][1].grad is None
    assert given["Bs"][1].grad is None
    found = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    alone = [F.lora_linear(given["x"], *(given[n][i] for n in ("weights", "As", "Bs", "scalings"))) for i in (0, 2)]
    (alone[0].sum() + alone[1].sum()).backward()
    for a, leaf in zip(found, leaves, strict=True):
        if a is not None:
            torch.testing.assert_close(a, leaf.grad, rtol=1e-5, atol=1e-5)


def test_weights_of_two_kinds() -> None:
    """Dense and 4-bit ones side by side, block sizes that differ: each as alone."""
    given, dense = make(torch.float32, 3, "nf4")
    given["weights"] = [dense[0], quantize_nf4(dense[1], 128), given["weights"][2]]
    ys = F.grouped_lora_linear(**given)
    for i, y in enumerate(ys):
        alone = (given[name][i] for name in ("weights", "As", "Bs", "scalings", "biases"))
        torch.testing.assert_close(y, F.lora_linear(given["x"], *alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("change", "message"), [
    ({"As": []}, "as many of each"),
    ({"weights": [], "As": [], "Bs": [], "scalings": [], "biases": []}, "at least one"),
    ({"biases": [None, None]}, "as many of each"),
    ({"x": torch.zeros(2, K + 1)}, r"x: expected \[..., 192\]"),
    ({"Bs": [torch.zeros(320, 8)] * 3}, r"B: expected \[1088, 4\]"),
    ({"weights": [torch.zeros(320, K), torch.zeros(1088, 64), torch.zeros(200, K)]}, "weights: expected all"),
])  # fmt: skip
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    given, _ = make(torch.float32, 2, "nf4")
    with pytest.raises(ValueError, match=message):
        F.grouped_lora_linear(**{**given, **change})
