"""The report's rows: a model with ten kinds of layers, each condition changed and its row seen to change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

import lorafam
from lorafam.interop import AccelerateReport, Row
from tests.interop.tiny_lm import Block, config_of, peft_model, quantise

IN, OUT = 64, 72


class Doubled(nn.Linear):
    """A class of its own: only its forward says what it computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Kinds(nn.Module):
    """Ten kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.narrow = nn.Linear(IN, OUT), nn.Linear(IN, OUT, dtype=torch.bfloat16)
        self.transposed = Conv1D(OUT, IN)
        self.table = nn.Embedding(9, IN)
        self.convolution = nn.Conv2d(3, 4, 3)
        self.own_class = Doubled(IN, OUT)
        self.attention = nn.MultiheadAttention(IN, 4)
        self.four_bit, self.eight_bit = quantise(Block(), "nf4"), quantise(Block(), "int8")
        self.experts = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(2, IN, OUT))})


def kinds(**settings: Any) -> Any:
    torch.manual_seed(0)
    model = Kinds()
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = True
    targets = [
        "dense",
        "narrow",
        "transposed",
        "table",
        "convolution",
        "own_class",
        "attention",
        "four_bit.q",
        "eight_bit.q",
    ]
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, **settings))


def rows_of(model: nn.Module) -> dict[str, tuple[str, str]]:
    return {
        row.name.removeprefix("base_model.model."): (row.path, row.reason) for row in lorafam.accelerate(model).rows
    }


EXPECTED = {
    "dense": ("fused", "dense weight"),
    "narrow": ("fused", "dense weight"),
    "transposed": ("fused", "dense weight, transposed"),
    "table": ("PEFT", "a look-up and a small product: nothing to fuse"),
    "convolution": ("PEFT", "lora.Conv2d has no faster path"),
    "own_class": ("base + low rank", "Doubled is not a layer whose weight is known: its own forward runs"),
    "attention": ("PEFT", "lora.MultiheadAttention has no faster path"),
    "attention.base_layer.out_proj": ("PEFT", "part of a layer that merges for each forward"),
    "four_bit.q": ("fused", "bitsandbytes 4-bit weight, shared"),
    "eight_bit.q": ("base + low rank", "Linear8bitLt is not a layer whose weight is known: its own forward runs"),
}


def test_every_kind_of_layer() -> None:
    assert rows_of(kinds()) == EXPECTED


def _layer(model: Any, name: str = "dense") -> Any:
    return getattr(model.base_model.model, name)


def _hook_base(model: Any) -> None:
    _layer(model).base_layer.register_forward_hook(lambda *_: None)


def _hook_factor(model: Any) -> None:
    _layer(model).lora_A["default"].register_forward_pre_hook(lambda *_: None)


def _own_dropout(model: Any) -> None:
    _layer(model).lora_dropout["default"] = nn.AlphaDropout(0.1)


def _own_factor(model: Any) -> None:
    parametrize.register_parametrization(_layer(model).lora_B["default"], "weight", nn.Identity())


def _disable(model: Any) -> None:
    model.base_model.disable_adapter_layers()


def _merge(model: Any) -> None:
    _layer(model).merge()


def _train_base(model: Any) -> None:
    _layer(model).base_layer.weight.requires_grad_()


def _other_adapter(model: Any) -> None:
    model.add_adapter("other", LoraConfig(r=2, target_modules=["narrow"]))
    model.set_adapter("other")


def _two_adapters(model: Any) -> None:
    model.add_adapter("other", LoraConfig(r=2, target_modules=["dense"], lora_dropout=0.1))
    model.base_model.set_adapter(["default", "other"])


def _gathered(model: Any) -> None:
    _layer(model).lora_A["default"].weight.data = torch.empty(0)


def _gathered_base(model: Any) -> None:
    _layer(model).base_layer.weight.data = torch.empty(0)


def _subclass(model: Any) -> None:
    class Sharded(nn.Parameter):
        pass

    factor = _layer(model).lora_A["default"]
    factor._parameters["weight"] = Sharded(factor.weight.data)


def _eight_bit_floats(model: Any) -> None:
    base = _layer(model).base_layer
    base.weight = nn.Parameter(base.weight.data.to(torch.float8_e4m3fn), requires_grad=False)


CHANGES: dict[Callable[[Any], None], tuple[str, str]] = {
    _hook_base: ("base + low rank", "the base layer has hooks: its own forward runs"),
    _hook_factor: ("PEFT", "hooks on the adapter's modules: they run"),
    _own_dropout: ("PEFT", "the dropout of default is a AlphaDropout"),
    _own_factor: ("PEFT", "the factors of default aren't plain linear layers"),
    _disable: ("PEFT", "the adapters are disabled: the base layer runs alone"),
    _merge: ("PEFT", "default is merged: the base layer runs alone"),
    _train_base: ("base + low rank", "the base weight is trained"),
    _other_adapter: ("PEFT", "no active adapter here: the base layer runs alone"),
    _two_adapters: ("PEFT", "several active adapters with a dropout mask each"),
    _gathered: ("PEFT", "the factors of default are gathered when their modules run"),
    _gathered_base: ("PEFT", "the base weight is gathered when its layer runs"),
    _subclass: ("PEFT", "the factors of default are Sharded: sharded or of a class of its own"),
    _eight_bit_floats: ("base + low rank", "the base weight is torch.float8_e4m3fn"),
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_condition_changes_its_row(change: Callable[[Any], None]) -> None:
    model = kinds()
    before = rows_of(model)
    change(model)
    after = rows_of(model)
    assert after["dense"] == CHANGES[change]
    if change not in (_disable, _other_adapter):
        assert {name: row for name, row in after.items() if name != "dense"} == {
            name: row for name, row in before.items() if name != "dense"
        }


def test_variants_and_methods() -> None:
    assert rows_of(peft_model("dora", "int8", 0.1).train())["block.q"] == (
        "PEFT",
        "DoRA with dropout needs two products with the weight; "
        "Linear8bitLt is not a layer whose weight is known: its own forward runs",
    )
    assert rows_of(peft_model("dora", "int8", 0.1).eval())["block.q"][0] == "base + low rank"
    assert rows_of(peft_model("adalora", "nf4"))["block.up"] == ("fused", "bitsandbytes 4-bit weight, shared")
    model = get_peft_model(Kinds(), LoraConfig(r=4, target_modules=["dense"], alora_invocation_tokens=[1]))
    assert rows_of(model)["dense"] == ("PEFT", "ALoraLinearVariant: computed by PEFT alone")
    model = get_peft_model(Kinds(), IA3Config(target_modules=["dense"], feedforward_modules=[]))
    assert rows_of(model)["dense"] == ("PEFT", "ia3.Linear has no faster path")


def test_a_repacked_weight_says_so() -> None:
    model = peft_model("lora", "nf4")
    model.base_model.model.block.q.base_layer.weight.quant_state.packing_format_for_cpu = True
    path, reason = rows_of(model)["block.q"]
    assert path == "PEFT"
    assert "repacked" in reason


def test_explain() -> None:
    model = kinds()
    with pytest.raises(TypeError, match="expected a lorafam layer"):
        lorafam.explain(_layer(model), 3)
    lorafam.accelerate(model)
    found = lorafam.explain(model.base_model.model.four_bit.q, 3)
    assert found.backend == "numba"
    assert found.reason.startswith("bitsandbytes 4-bit weight, shared")
    assert lorafam.explain(_layer(model, "own_class"), 3).path == "base module + low rank"
    _disable(model)
    assert lorafam.explain(_layer(model), 3)[:2] == ("PEFT's own code", "torch")


def test_as_a_table() -> None:
    rows = [
        Row("layers.0.q", "fused", "dense weight"),
        Row("layers.1.q", "fused", "dense weight"),
        Row("head", "PEFT", "default is merged: the base layer runs alone"),
    ]
    assert str(AccelerateReport(rows)).splitlines() == [
        "layers          path   reason",
        "layers.*.q  x2  fused  dense weight",
        "head            PEFT   default is merged: the base layer runs alone",
        "3 layers: 2 fused, 1 PEFT",
    ]
    assert str(AccelerateReport([], "there is none")) == "lorafam: no layer accelerated: there is none"


def test_layers_injected_without_a_peft_model() -> None:
    model = Kinds()
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["dense"]), model)
    assert lorafam.accelerate(model).rows == [Row("dense", "fused", "dense weight")]
    config = AdaLoraConfig(init_r=4, total_step=9, target_modules=["dense"])
    assert lorafam.accelerate(inject_adapter_in_model(config, Kinds())).count("fused") == 1
    assert config_of("adalora").init_r == 4
