"""Every method, backend and storage against the fp64 reference: output and every gradient, by the ratio rule."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from lorafam import NF4Weight, quantize_nf4, reference
from lorafam import functional as F
from lorafam.reference import peft_order
from tests.conftest import BACKENDS, INTERPRETING, device, need_ptxsim
from tests.tolerances import assert_as_good_as_eager

Tensor = torch.Tensor
M, K, N, RANK, SEEDS, DROPOUT = 19, 130, 1031, 8, 1, 0.3
LEAVES = ("x", "A", "E", "B", "magnitude", "bias")


class Shape(NamedTuple):
    """Tokens, input and output features, rank, and how many seeds are pooled."""

    M: int
    K: int
    N: int
    rank: int
    seeds: int
    block_size: int = 64


SHAPE = Shape(M, K, N, RANK, SEEDS)
# dE has one number a rank, and the ratio rule wants 1,024 of them
ADALORA_RANK = 1024
# where code is simulated or interpreted, that takes five times as long as LoRA, and with few features twice
NARROW_SHAPE = SHAPE._replace(K=70, N=67, rank=ADALORA_RANK)
METHODS = ("nf4_linear", "lora_linear", "adalora_linear", "dora_linear")


def make(method: str, seed: int, dtype: torch.dtype, mean: float, shape: Shape = SHAPE) -> dict[str, Any]:
    """Random arguments on the backend's device: x and bias in `dtype`, the adapter in fp32."""
    M, K, N = shape[:3]
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0, to: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device(), to)

    rank = shape.rank
    every = {
        "x": (random(M, K) + mean).to(dtype),
        "A": random(rank, K, scale=0.1),
        "E": random(rank, 1),
        "B": random(N, rank, scale=0.1),
        "magnitude": random(N).abs() + 0.5,
        "scaling": 1.7,
        "rank_num": 5.0,
        "bias": random(N, to=dtype),
    }
    names = {
        "nf4_linear": ["x", "bias"],
        "lora_linear": ["x", "A", "B", "scaling", "bias"],
        "adalora_linear": ["x", "A", "E", "B", "scaling", "rank_num", "bias"],
        "dora_linear": ["x", "A", "B", "magnitude", "scaling", "bias"],
    }
    return {name: every[name] for name in names[method]}


def weight_of(storage: str, seed: int, dtype: torch.dtype, shape: Shape = SHAPE) -> tuple[Any, Tensor]:
    """A weight as the user has it, and what it stands for as a dense tensor."""
    if storage == "dense":
        dense = dense_weight(seed, shape).to(device(), dtype)
        return dense, dense
    quantised, decoded = _quantised(storage, seed, shape, device())
    # a weight that keeps nothing yet of what another test's backend computed from it
    return quantised.with_tensors(quantised.tensors()), decoded


@functools.lru_cache(maxsize=32)
def _quantised(storage: str, seed: int, shape: Shape, where: str) -> tuple[NF4Weight, Tensor]:
    """The same on every backend (`tests/backends/test_four_bit.py`), and so made once."""
    dense = dense_weight(seed, shape).to(where)
    weight = quantize_nf4(dense, shape.block_size, storage == "nf4", quant_type="nf4" if storage == "nf4" else "fp4")
    return weight, weight.dequantize(torch.float32)


def dense_weight(seed: int, shape: Shape) -> Tensor:
    return torch.randn(shape.N, shape.K, generator=torch.Generator().manual_seed(1000 + seed)) * 0.1


def run(forward: Callable[..., Tensor], given: dict[str, Any], grad_y: Tensor, **more: Any) -> dict[str, Tensor]:
    """{"y": ..., "dx": ..., ...} of a forward, by autograd."""
    leaves = {name: given[name].detach().clone().requires_grad_() for name in LEAVES if name in given}
    y = forward(**{**given, **leaves}, **more)
    grads = torch.autograd.grad(y, list(leaves.values()), grad_y.to(y))
    return {"y": y.detach(), **{f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}}


def widened(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in given.items()}


def compare(
    method: str,
    storage: str,
    dtype: torch.dtype,
    mean: float,
    dropout_p: float,
    dora_dropout: str | None = None,
    shape: Shape = SHAPE,
) -> None:
    if method != "adalora_linear":
        compare_at(shape, method, storage, dtype, mean, dropout_p, dora_dropout)
    elif shape == SHAPE and os.environ["LORAFAM_BACKEND"] in ("simulate", "interpret"):
        compare_at(SHAPE, method, storage, dtype, mean, dropout_p, left_out="dE")
        compare_at(NARROW_SHAPE, method, storage, dtype, mean, dropout_p, left_out="dbias")
    else:
        compare_at(shape._replace(rank=ADALORA_RANK), method, storage, dtype, mean, dropout_p)
        if shape == SHAPE:
            # a sum over many more ranks than features
            compare_at(NARROW_SHAPE, method, storage, dtype, mean, dropout_p, left_out="dbias")


def compare_at(
    shape: Shape,
    method: str,
    storage: str,
    dtype: torch.dtype,
    mean: float,
    dropout_p: float,
    dora_dropout: str | None = None,
    left_out: str | None = None,
) -> None:
    """At one shape, all but the result `left_out`, which has too few elements there."""
    M, K, N = shape[:3]
    if INTERPRETING and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter truncates to bf16")
    results: dict[str, list[dict[str, Tensor]]] = {"ours": [], "eager": [], "exact": []}
    own = {} if dora_dropout is None else {"dora_dropout": dora_dropout}
    for seed in range(shape.seeds):
        given = make(method, seed, dtype, mean, shape)
        weight, dense = weight_of(storage, seed, dtype, shape)
        grad_y = torch.randn(M, N, generator=torch.Generator().manual_seed(2000 + seed)).to(dtype)
        masked: dict[str, Any] = {}
        ours: dict[str, Any] = {}
        if method != "nf4_linear" and dropout_p:
            mask = reference.dropout_mask(seed, M, K, dropout_p, torch.float64, device())
            masked = {"mask": mask}
            ours = {"dropout_p": dropout_p, "training": True, "seed": seed}
        results["ours"].append(run(getattr(F, method), {**given, "weight": weight}, grad_y, **ours, **own))
        narrow = {name: value.float() for name, value in masked.items()}
        eager = {**given, "weight": dense.to(dtype)}
        results["eager"].append(run(getattr(peft_order, method), eager, grad_y, **narrow, **own))
        exact = {**widened(given), "weight": dense.double()}
        results["exact"].append(run(getattr(reference, method), exact, grad_y.double(), **masked, **own))
    for name in results["exact"][0].keys() - {left_out}:
        ours_all, eager_all, exact_all = ([result[name] for result in results[who]] for who in results)
        assert_as_good_as_eager(ours_all, eager_all, exact_all, name=f"{method} {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("storage", ["dense", "nf4", "fp4"])
@pytest.mark.parametrize("method", METHODS)
def test_output_and_gradients(method: str, storage: str, dtype: torch.dtype, backend: str) -> None:
    compare(method, storage, dtype, mean=0.0, dropout_p=0.0)


@pytest.mark.parametrize("mean", [0.0, 2.0])
@pytest.mark.parametrize("storage", ["dense", "nf4"])
@pytest.mark.parametrize("method", METHODS[1:])
def test_with_dropout_and_inputs_off_zero(method: str, storage: str, mean: float, backend: str) -> None:
    compare(method, storage, torch.float32, mean=mean, dropout_p=DROPOUT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("storage", ["dense", "nf4"])
def test_dora_with_peft_dropout(storage: str, dtype: torch.dtype, backend: str) -> None:
    compare("dora_linear", storage, dtype, mean=1.0, dropout_p=DROPOUT, dora_dropout="input")


@pytest.mark.parametrize("method", METHODS)
def test_inputs_off_zero_in_bf16(method: str, backend: str) -> None:
    compare(method, "nf4", torch.bfloat16, mean=3.0, dropout_p=0.0)


@pytest.mark.parametrize("leading", [(0,), (), (2, 0), (2, 3)])
@pytest.mark.parametrize("method", METHODS)
def test_leading_dimensions_and_strides(method: str, leading: tuple[int, ...], backend: str) -> None:
    given = make(method, 0, torch.float32, 0.0)
    weight, _ = weight_of("nf4", 0, torch.float32)
    x = torch.randn(*leading, K, 2).to(device())[..., 0].requires_grad_()
    y = getattr(F, method)(**{**given, "x": x}, weight=weight)
    assert y.shape == (*leading, N)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    flat = getattr(F, method)(**{**given, "x": x.detach().reshape(-1, K).contiguous()}, weight=weight)
    torch.testing.assert_close(y.detach().reshape(-1, N), flat, rtol=0, atol=0)


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
def test_dora_zero_magnitude(captured: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """m = 0 in a row: dm there is Σ G ∘ (x Wᵀ + P B̂ᵀ)/n, not 0/0; also where no value can be asked for."""
    monkeypatch.setattr("lorafam.autograd.dora_linear.has_no_value_now", lambda tensor: captured)
    given = make("dora_linear", 0, torch.float32, 0.0)
    given["magnitude"][::7] = 0.0
    weight, dense = weight_of("nf4", 0, torch.float32)
    grad_y = torch.randn(M, N)
    ours = run(F.dora_linear, {**given, "weight": weight}, grad_y)
    exact = run(reference.dora_linear, {**widened(given), "weight": dense.double()}, grad_y.double())
    torch.testing.assert_close(ours["dmagnitude"].double(), exact["dmagnitude"], rtol=1e-4, atol=1e-4)


def test_dora_zero_rows(backend: str) -> None:
    """A row of W + B̂A that is zero gives zero outputs and finite gradients."""
    given = make("dora_linear", 0, torch.float32, 0.0)
    dense = torch.randn(N, K).to(device())
    dense[3] = 0.0
    given["B"][3] = 0.0
    given |= {"bias": torch.zeros_like(given["bias"]), "weight": dense}
    result = run(F.dora_linear, given, torch.ones(M, N))
    assert result["y"][:, 3].eq(0).all()
    for name in ("y", "dx", "dA", "dmagnitude"):
        assert result[name].isfinite().all(), name


def test_dora_output_changed_in_place(backend: str) -> None:
    """The saved output is the returned one: where it was changed, dm comes from the product formed again."""
    given = make("dora_linear", 0, torch.float32, 0.0)
    weight = weight_of("nf4", 0, torch.float32)[0]
    found = []
    for change in (True, False):
        magnitude = given["magnitude"].clone().requires_grad_()
        y = F.dora_linear(**{**given, "magnitude": magnitude}, weight=weight)
        y = y.add_(1.0) if change else y + 1.0
        y.square().sum().backward()
        found.append(magnitude.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)


def test_dora_output_changed_in_place_under_compile() -> None:
    """A compiled graph has no version check: there the gradient must simply be right."""
    given = make("dora_linear", 0, torch.float32, 0.0)
    weight = weight_of("dense", 0, torch.float32)[0]
    magnitude = given["magnitude"].requires_grad_()
    expected = torch.autograd.grad(F.dora_linear(**given, weight=weight).square().sum(), magnitude)[0]
    compiled = torch.compile(F.dora_linear, backend="aot_eager", fullgraph=True)
    y = compiled(**given, weight=weight)
    gradient = 2 * y.detach()
    y.add_(1.0)
    found = torch.autograd.grad(y, magnitude, gradient)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_same_seed_same_mask_on_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(50, 37)
    for seed in (torch.tensor(1234567890123), torch.tensor(-5)):
        expected = reference.dropout_mask(seed, 50, 37, DROPOUT)
        for name in BACKENDS:
            if name == "simulate":
                need_ptxsim()
            monkeypatch.setenv("LORAFAM_BACKEND", name)
            dropped = torch.ops.lorafam.dropout(x.to(device()), seed.to(device()), DROPOUT)
            assert torch.equal(dropped.cpu(), expected), name


def test_checkpointing_draws_the_same_mask(backend: str) -> None:
    given = make("lora_linear", 0, torch.float32, 0.0)
    weight = weight_of("nf4", 0, torch.float32)[0]

    def gradients(checkpointed: bool) -> dict[str, Tensor]:
        def forward(**arguments: Any) -> Tensor:
            call = lambda x: F.lora_linear(**{**arguments, "x": x}, dropout_p=DROPOUT, training=True)  # noqa: E731
            if checkpointed:
                return torch.utils.checkpoint.checkpoint(call, arguments["x"], use_reentrant=False)
            return call(arguments["x"])

        torch.manual_seed(7)
        return run(forward, {**given, "weight": weight}, torch.ones(M, N))

    plain, again = gradients(False), gradients(True)
    for name, value in plain.items():
        assert torch.equal(value, again[name]), name


def test_autocast_takes_autocast_dtype(backend: str) -> None:
    given = make("dora_linear", 0, torch.float32, 0.0)
    weight = weight_of("nf4", 0, torch.float32)[0]
    with torch.autocast(device(), torch.bfloat16):
        y = F.dora_linear(**given, weight=weight)
    expected = F.dora_linear(**{**given, "x": given["x"].bfloat16()}, weight=weight)
    assert torch.equal(y, expected)


BAD = {
    "x shape": ({"x": torch.zeros(3, K + 1)}, ValueError, r"x: expected \[\.\.\., 130\], got \[3, 131\]"),
    "x dtype": ({"x": torch.zeros(3, K, dtype=torch.int64)}, TypeError, "x: expected a floating-point dtype"),
    "A shape": ({"A": torch.zeros(RANK, K - 1)}, ValueError, r"A: expected \[r, 130\], got \[8, 129\]"),
    "B shape": ({"B": torch.zeros(N, RANK + 1)}, ValueError, r"B: expected \[1031, 8\], got \[1031, 9\]"),
    "bias shape": ({"bias": torch.zeros(N + 1)}, ValueError, r"bias: expected \[1031\], got \[1032\]"),
    "dropout": ({"dropout_p": 1.0}, ValueError, r"dropout_p: expected a probability in \[0, 1\), got 1.0"),
    "device": ({"A": torch.zeros(RANK, K, device="meta")}, ValueError, "A: expected device cpu, got meta"),
    "seed": ({"seed": torch.zeros(2), "dropout_p": 0.1, "training": True}, ValueError, "seed: expected one int64"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_the_argument(case: str) -> None:
    changes, error, message = BAD[case]
    given = make("lora_linear", 0, torch.float32, 0.0)
    with pytest.raises(error, match=message):
        F.lora_linear(**{**given, "weight": weight_of("nf4", 0, torch.float32)[0], **changes})


def test_a_weight_that_wants_gradients_is_refused() -> None:
    given = make("lora_linear", 0, torch.float32, 0.0)
    with pytest.raises(ValueError, match="weight: expected a frozen weight"):
        F.lora_linear(**given, weight=torch.zeros(N, K, requires_grad=True))


@pytest.mark.parametrize("size", [0.1, 0.6])
def test_dora_magnitude_gradient_with_a_large_bias(size: float, backend: str) -> None:
    """Y − bias loses the digits of a small c ∘ (x Wᵀ + P B̂ᵀ): dm must not."""
    if INTERPRETING:
        pytest.skip("Triton's interpreter truncates to bf16")
    results: dict[str, list[Tensor]] = {"ours": [], "eager": [], "exact": []}
    for seed in range(SEEDS):
        given = make("dora_linear", seed, torch.bfloat16, 0.0)
        weight, dense = weight_of("nf4", seed, torch.bfloat16)
        norm = reference.row_norm(dense, given["A"], given["B"], given["scaling"])
        given |= {"magnitude": norm * size, "bias": given["bias"] * 10}
        grad_y = torch.randn(M, N, generator=torch.Generator().manual_seed(seed)).bfloat16()
        results["ours"].append(run(F.dora_linear, {**given, "weight": weight}, grad_y)["dmagnitude"])
        eager = run(peft_order.dora_linear, {**given, "weight": dense.bfloat16()}, grad_y)
        exact = run(reference.dora_linear, {**widened(given), "weight": dense.double()}, grad_y.double())
        results["eager"].append(eager["dmagnitude"])
        results["exact"].append(exact["dmagnitude"])
    assert_as_good_as_eager(results["ours"], results["eager"], results["exact"], name=f"dm, c = {size}")
