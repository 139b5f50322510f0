"""What plain PEFT does right and lorafam refuses: all of it, at most 8 kinds, with reasons in
docs/decisions/peft-and-files.md. Each is shown right in PEFT, by value, and refused before anything is changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import lorafam
from lorafam import AdapterConfig
from lorafam.model import adapter_layers
from tests.model.tiny import disturb, tokens
from tests.scenarios.files import BASES, close, llama, logits
from tests.scenarios.models import tokens as rows
from tests.scenarios.test_older_experts import mixtral, older_file
from tests.tree import ROOT

MOST = 8
Q = {"r": 4, "target_modules": ["q_proj"]}


class Case(NamedTuple):
    """`peft` gives what PEFT has and what is right. `model` is what `call` is refused on, with `told`."""

    kind: str
    peft: Callable[[Path], tuple[torch.Tensor, torch.Tensor]]
    model: Callable[[], Any]
    call: Callable[[Any, Path], object]
    error: type[Exception]
    told: str


def peft(base: Callable[[], nn.Module] = llama, **settings: Any) -> Any:
    model = get_peft_model(base(), LoraConfig(**Q | settings))
    disturb(model)
    return model


def updated(model: Any, names: tuple[str, ...] = ("default",)) -> torch.Tensor:
    """The bare model with the adapters' updates in its weights."""
    plain = llama()
    with torch.no_grad():
        for path, layer in model.base_model.model.named_modules():
            if hasattr(layer, "get_delta_weight"):
                for name in names:
                    plain.get_submodule(path).weight += layer.get_delta_weight(name)
    return logits(plain)


def two(**settings: Any) -> Any:
    model = peft(**settings)
    model.add_adapter("b", LoraConfig(**Q))
    model.set_adapter("b")
    disturb(model, 2)
    return model


def several_active(_: Path) -> Any:
    model = two()
    model.base_model.set_adapter(["default", "b"])
    return logits(model), updated(model, ("default", "b"))


def switched_while_merged(_: Path) -> Any:
    model = two()
    model.merge_adapter()
    model.set_adapter("default")
    return logits(model), updated(model)


def merged_twice(_: Path) -> Any:
    model = peft()
    want = updated(model)
    model.merge_adapter()
    model.merge_adapter()
    return logits(model), want


def _with(**settings: Any) -> Callable[[Path], Any]:
    def right(_: Path) -> Any:
        model = peft(**settings)
        return logits(model), updated(model)

    return right


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.attention = nn.Conv2d(3, 8, 3), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(x).flatten(2).transpose(1, 2)
        return self.attention(h, h, h)[0]


def _layer(name: str) -> Callable[[Path], Any]:
    def right(_: Path) -> Any:
        model: Any = peft(Other, target_modules=[name]).eval()
        x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
        y = model(x)
        assert not torch.allclose(y, Other()(x), atol=1e-3)
        return y, model.merge_and_unload()(x)

    return right


def orthogonal(_: Path) -> Any:
    return logits(get_peft_model(llama(), LoraConfig(**Q, init_lora_weights="orthogonal"))), logits(llama())


def ties(_: Path) -> Any:
    """Of one adapter all of it."""
    model = peft()
    model.add_weighted_adapter(["default"], [1.0], "new", combination_type="ties_svd", density=1.0)
    want = logits(model)
    model.set_adapter("new")
    return logits(model), want


def replicated(folder: Path) -> Any:
    """Layers twice, each with its adapter."""
    model = peft(layer_replication=[(0, 2), (0, 2)])
    model.save_pretrained(folder / "adapter")
    want = logits(model)
    model.unload()
    return logits(PeftModel.from_pretrained(llama(), folder / "adapter")), want


def rows_and_a_tied_head(_: Path) -> Any:
    model = peft(BASES["tied"], target_modules=["lm_head"], trainable_token_indices=[1, 5])
    inner = model.base_model.model.eval()
    head, table = inner.lm_head, inner.model.embed_tokens.token_adapter
    W = BASES["tied"]().lm_head.weight.detach().clone()
    W[[1, 5]] = table.trainable_tokens_delta["default"].detach()
    with torch.no_grad():
        hidden = inner.model(tokens()).last_hidden_state
        return logits(model), hidden @ (W + head.get_delta_weight("default")).T


def older_experts(folder: Path) -> Any:
    want = logits(older_file(folder / "adapter", ["w1", "w2", "w3"]))
    return logits(PeftModel.from_pretrained(mixtral(), folder / "adapter")), want


def eight_bits() -> Any:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model: Any = nn.ModuleDict({"q_proj": bitsandbytes.nn.Linear8bitLt(64, 48, has_fp16_weights=False)})
    model.is_loaded_in_8bit = True
    return model.to("cpu")


def merged_in_8_bits(_: Path) -> Any:
    base = eight_bits()
    x = rows(5)
    base["q_proj"](x)
    model: Any = get_peft_model(base, LoraConfig(**Q, init_lora_weights=False)).eval()
    layer = model.base_model.model["q_proj"]
    want = layer(x)
    layer.merge()
    error = (layer(x) - want).norm() / want.norm()
    # 8 bits
    assert error < 0.02
    return want, want


def own(base: Callable[[], nn.Module] = llama, **settings: Any) -> Any:
    model = lorafam.adapt(base(), AdapterConfig(**Q | settings))
    disturb(model)
    return model


def own_two() -> Any:
    model = own()
    lorafam.add_adapter(model, "b")
    return model


def own_merged() -> Any:
    model = own_two()
    for layer in adapter_layers(model).values():
        layer.merge()
    return model


def _adapted(**settings: Any) -> Callable[[Any, Path], object]:
    return lambda model, folder: lorafam.adapt(model, AdapterConfig(**Q | settings))


def _loaded(model: Any, folder: Path) -> object:
    return lorafam.load_adapter(model, folder / "adapter")


MERGED, SLIPS, LAYERS = "merged layers", "slips of the keyboard", "convolutions and nn.MultiheadAttention"
HAS_NOT, ROWS = "methods, starts and combinations that lorafam hasn't", "rows of tokens beside a tied adapted layer"
CASES: dict[str, Case] = {
    "several active adapters": Case(
        "several active adapters",
        several_active,
        own_two,
        lambda model, _: model.set_adapter(["default", "b"]),
        ValueError,
        "adapter_name: expected one adapter, got .*; combine_adapters makes one of several",
    ),
    "switched": Case(
        MERGED,
        switched_while_merged,
        own_merged,
        lambda model, _: lorafam.set_adapter(model, "b"),
        RuntimeError,
        "set_adapter: '.*q_proj' is merged, unmerge it first",
    ),
    "merged twice": Case(
        MERGED,
        merged_twice,
        own_merged,
        lambda model, _: next(iter(adapter_layers(model).values())).merge(),
        RuntimeError,
        "merge: the layer is merged already",
    ),
    "a target": Case(
        SLIPS,
        _with(target_modules=["q_proj", "v_prj"]),
        llama,
        _adapted(target_modules=["q_proj", "v_prj"]),
        ValueError,
        "target_modules: no module is called 'v_prj'; the model has v_proj",
    ),
    "a module to save": Case(
        SLIPS,
        _with(modules_to_save=["scor"]),
        llama,
        _adapted(modules_to_save=["scor"]),
        ValueError,
        "modules_to_save: no module is called 'scor'",
    ),
    "a sign": Case(
        SLIPS,
        _with(lora_alpha=-8),
        llama,
        _adapted(alpha=-8),
        ValueError,
        "alpha: expected a number that isn't negative, got -8",
    ),
    "a dropout of all": Case(
        SLIPS,
        _with(lora_dropout=1.0),
        llama,
        _adapted(dropout=1.0),
        ValueError,
        r"dropout: expected a probability in \[0, 1\), got 1.0",
    ),
    "a convolution": Case(
        LAYERS,
        _layer("conv"),
        Other,
        _adapted(target_modules=["conv"]),
        ValueError,
        "'conv' can't be adapted .*Conv2d has none",
    ),
    "attention in one": Case(
        LAYERS,
        _layer("attention"),
        Other,
        _adapted(target_modules=["attention"]),
        ValueError,
        "'attention' can't be adapted .*MultiheadAttention has none",
    ),
    "a start": Case(
        HAS_NOT,
        orthogonal,
        llama,
        _adapted(init="orthogonal"),
        ValueError,
        "init: expected one of 'default', .*got 'orthogonal'",
    ),
    "a combination": Case(
        HAS_NOT,
        ties,
        own,
        lambda model, _: lorafam.combine_adapters(model, ["default"], [1.0], "new", "ties_svd"),
        ValueError,
        "how: expected one of 'linear', 'cat', 'svd', got 'ties_svd'",
    ),
    "a file": Case(
        HAS_NOT,
        replicated,
        llama,
        _loaded,
        ValueError,
        r"adapter_config\.json: layer_replication = .* is not supported",
    ),
    ROWS: Case(
        ROWS,
        rows_and_a_tied_head,
        BASES["tied"],
        _adapted(target_modules=["lm_head"], trainable_token_indices=[1, 5]),
        ValueError,
        "trainable_token_indices: expected tables that aren't tied to an adapted layer",
    ),
    "files of experts from before transformers 5": Case(
        "files of experts from before transformers 5",
        older_experts,
        mixtral,
        _loaded,
        ValueError,
        "a layer that is a part of 'model.layers.0.mlp.experts",
    ),
    "merging into 8 bits": Case(
        "merging into 8 bits",
        merged_in_8_bits,
        lambda: own(eight_bits),
        lambda model, _: model["q_proj"].merge(),
        TypeError,
        "merge: the weight of a Linear8bitLt can't be replaced",
    ),
}


def facts(model: nn.Module) -> Iterator[Any]:
    for path, module in model.named_modules():
        yield path, type(module), getattr(module, "merged", None), getattr(module, "active_adapter", None)
    for name, parameter in model.named_parameters():
        yield name, parameter.requires_grad, parameter.detach().clone()


def same(before: list[Any], after: list[Any]) -> bool:
    pairs = zip(before, after, strict=True)
    return all(
        all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True))
        for one, other in pairs
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_peft_is_right_and_lorafam_refuses(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    found, want = case.peft(tmp_path)
    close(found, want)
    model = case.model()
    before = list(facts(model))
    with pytest.raises(case.error, match=case.told):
        case.call(model, tmp_path)
    assert same(before, list(facts(model)))


def test_there_are_no_more_and_each_has_a_reason() -> None:
    kinds = {case.kind for case in CASES.values()}
    assert len(kinds) <= MOST
    page = (ROOT / "docs" / "decisions" / "peft-and-files.md").read_text(encoding="utf-8")
    section = page.split("## What PEFT does and lorafam refuses\n")[1].split("\n## ")[0]
    told = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    assert {kind for kind, _ in told[1:]} == kinds
    assert all(len(reason) > 20 for _, reason in told[1:])
