"""PiSSA, OLoRA and LoftQ against PEFT's results and their papers' equations; the base that lost a part."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb_functional
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import lorafam
from lorafam import AdapterConfig, DoraLinear, LoraLinear, NF4Linear, quantize_nf4
from lorafam.methods import initialisers
from lorafam.model import adapter_layers
from tests.model.tiny import disturb, tiny_model, tokens

Tensor = torch.Tensor
N, K, RANK = 48, 64, 6


def linear(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(K, N, dtype=dtype)


def peft_layer(init: str, rslora: bool, dtype: torch.dtype = torch.float32, dora: bool = False) -> Any:
    model = nn.ModuleDict({"layer": linear(dtype=dtype)})
    config = LoraConfig(
        r=RANK, lora_alpha=9, target_modules=["layer"], init_lora_weights=init, use_rslora=rslora, use_dora=dora
    )
    torch.manual_seed(1)
    return get_peft_model(model, config).base_model.model["layer"]


def update_of(layer: Any) -> Tensor:
    return (layer.active.scaling * layer.B @ layer.A).detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_as_peft_has_it(init: str, rslora: bool, dtype: torch.dtype) -> None:
    theirs = peft_layer(init, rslora, dtype)
    ours = LoraLinear(linear(dtype=dtype), r=RANK, alpha=9, rslora=rslora, init=init)
    expected = theirs.scaling["default"] * theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight
    # PEFT's factors have been through the base's dtype
    near = {"rtol": 1e-3, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(update_of(ours), expected.detach().float(), **near)
    torch.testing.assert_close(ours.base_layer.weight, theirs.base_layer.weight.detach(), rtol=2e-2, atol=2e-3)
    if init == "olora" and dtype == torch.float32:
        torch.testing.assert_close(ours.A, theirs.lora_A["default"].weight.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_8", "olora"])
@pytest.mark.parametrize("kind", [LoraLinear, DoraLinear])
def test_the_layer_starts_as_its_base(kind: Any, init: str) -> None:
    base = linear()
    x = torch.randn(5, K)
    expected = base(x)
    layer = kind(base, r=RANK, alpha=9, init=init)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    weight = linear().weight
    torch.testing.assert_close(layer.base_layer.weight + update_of(layer), weight, rtol=1e-5, atol=1e-6)


def test_pissa_takes_the_largest_singular_values() -> None:
    """Equations 2 to 4: the residual has the rest of them, and both factors the same share."""
    values = torch.linalg.svdvals(linear().weight.double())
    layer = LoraLinear(linear(), r=RANK, alpha=9, init="pissa")
    torch.testing.assert_close(
        torch.linalg.svdvals(layer.base_layer.weight.double())[: N - RANK], values[RANK:], rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        torch.linalg.svdvals(update_of(layer).double())[:RANK], values[:RANK], rtol=1e-5, atol=1e-6
    )
    root = (values[:RANK] / layer.active.scaling).sqrt().float()
    torch.testing.assert_close(layer.A.detach().norm(dim=1), root, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.B.detach().norm(dim=0), root, rtol=1e-4, atol=1e-5)


def test_the_randomised_one_is_near_the_exact_one() -> None:
    """On a spectrum that falls, as weights of trained models have; what a rank leaves is at most 1 % more."""
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(256, 256))[0] for _ in range(2))
    weight = U * 0.97 ** torch.arange(256) @ V.T
    left = [
        (weight - 1.5 * start.B @ start.A).norm().item()
        for start in (initialisers.from_weight(init, weight, 16, 1.5) for init in ("pissa", "pissa_niter_4"))
    ]
    assert left[0] < left[1] < 1.01 * left[0]


def _paper_loftq(weight: Tensor, rank: int, turns: int) -> tuple[Tensor, Tensor]:
    """Algorithm 1 with bitsandbytes' quantiser: (Q, A Bᵀ)."""
    product = torch.zeros_like(weight)
    for _ in range(turns):
        codes, state = bnb_functional.quantize_4bit(weight - product, quant_type="nf4", compress_statistics=True)
        quantised = bnb_functional.dequantize_4bit(codes, state)
        U, S, Vh = torch.linalg.svd(weight - quantised, full_matrices=False)
        product = U[:, :rank] * S[:rank] @ Vh[:rank]
    return quantised, product


@pytest.mark.parametrize("alpha", [RANK, 9])
def test_loftq_is_the_papers_algorithm(alpha: int) -> None:
    weight = linear().weight.detach()
    quantised, start = initialisers.loftq(weight, RANK, alpha / RANK, quantize_nf4)
    expected, product = _paper_loftq(weight, RANK, initialisers.LOFTQ_TURNS)
    torch.testing.assert_close(quantised.dequantize(torch.float32), expected, rtol=0, atol=0)
    torch.testing.assert_close(alpha / RANK * start.B @ start.A, product, rtol=1e-4, atol=1e-6)
    plain = (weight - quantize_nf4(weight).dequantize(torch.float32)).norm()
    assert (weight - expected - product).norm() < 0.9 * plain


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("init", ["pissa", "olora", "loftq"])
def test_a_quantised_model_is_nearer_to_the_dense_one(init: str, method: str) -> None:
    dense = tiny_model()
    expected = dense(tokens()).logits
    errors = []
    for start in ("default", init):
        config = AdapterConfig(
            method=method, r=8, alpha=8, quantize="nf4", init=start, target_modules=["q_proj", "up_proj"]
        )
        model = lorafam.adapt(tiny_model(), config)
        layers = adapter_layers(model).values()
        assert all(isinstance(layer.base_layer, NF4Linear) for layer in layers)
        assert not any(type(child) is nn.Linear for path, child in model.named_modules() if "lm_head" not in path)
        weights = (dense.get_submodule(path).weight for path in adapter_layers(model))
        errors.append(sum((_effective(each) - w).norm().item() for each, w in zip(layers, weights, strict=True)))
        assert (model(tokens()).logits - expected).norm() < 0.2 * expected.norm()
    # OLoRA takes the first columns of Q, not the largest part
    assert errors[1] < (1.02 if init == "olora" else 0.95) * errors[0]


def _effective(layer: Any) -> Tensor:
    return layer.base_layer.weight.dequantize(torch.float32) + update_of(layer)


@pytest.mark.parametrize(
    "settings", [{}, {"rslora": True}, {"rank_pattern": {"up_proj": 3}, "alpha_pattern": {"q_proj": 5}}]
)
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_is_saved_is_for_the_base_as_it_was(
    init: str, method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = AdapterConfig(
        method=method, r=4, alpha=6, init=init, target_modules=["q_proj", "up_proj"], dora_dropout="input", **settings
    )
    model = lorafam.adapt(tiny_model(), config)
    disturb(model)
    expected = model.eval()(tokens()).logits
    lorafam.save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(tokens()).logits, expected, rtol=1e-4, atol=1e-4)
    ours = lorafam.load_adapter(tiny_model(), tmp_path).eval()
    torch.testing.assert_close(ours(tokens()).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_rank_larger_than_the_layer(init: str) -> None:
    base = nn.Linear(10, 6)
    x = torch.randn(3, 10)
    expected = base(x)
    layer = LoraLinear(base, r=9, alpha=9, init=init)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert layer.A.shape == (9, 10)
    layer(x).square().sum().backward()
    assert layer.B.grad is not None
    assert layer.B.grad[:, 6:].abs().sum() > 0


def test_a_base_of_four_bits_is_quantised_again() -> None:
    dense = linear()
    layer = LoraLinear(NF4Linear.from_linear(dense), r=RANK, alpha=9, init="pissa")
    assert isinstance(layer.base_layer, NF4Linear)
    assert (_effective(layer) - dense.weight).norm() < 0.12 * dense.weight.norm()


def test_copies_and_merging_keep_the_whole() -> None:
    layer = LoraLinear(linear(), r=RANK, alpha=9, init="pissa")
    again = copy.deepcopy(layer)
    assert torch.equal(again.active.start_A, layer.active.start_A)
    weight = linear().weight
    layer.merge()
    torch.testing.assert_close(layer.base_layer.weight, weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraLinear(linear(), init="pissa_niter_"), "init: expected one of"),
        (lambda: LoraLinear(linear(), init="loftq"), "init: 'loftq' quantises the base too"),
        (lambda: LoraLinear(linear(), alpha=0, init="pissa"), "alpha: init 'pissa' divides by the scaling"),
        (lambda: LoraLinear(linear(), init="pissa").add_adapter("b"), "adapter: expected no further one"),
        (lambda: LoraLinear(linear()).add_adapter("b", init="olora"), "init: 'olora' changes the base's weight"),
        (lambda: lorafam.AdaLoraLinear(linear(), init="pissa"), "init: AdaLoRA has one initialisation"),
        (lambda: AdapterConfig(init="loftq"), "expected quantize='nf4'"),
        (lambda: AdapterConfig(method="adalora", init="pissa"), "init: AdaLoRA has one"),
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_refusal_leaves_the_base() -> None:
    base = linear()
    before = base.weight.clone()
    with pytest.raises(ValueError, match="alpha"):
        LoraLinear(base, alpha=0, init="pissa")
    assert torch.equal(base.weight, before)
