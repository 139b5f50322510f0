"""LoRA and DoRA as two adapters of one layer, linear or an embedding: switched, saved, merged, as in PEFT."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import lorafam
from lorafam import AdapterConfig, DoraLinear, LoraLinear
from lorafam.methods import DoraEmbedding, LoraEmbedding
from lorafam.model import adapter_layers
from tests.model.tiny import disturb, tokens
from tests.scenarios.files import BASES, by_peft, close, logits
from tests.scenarios.models import WAYS, Model
from tests.scenarios.models import tokens as rows

TARGETS = {"linear": ["q_proj"], "table": ["embed_tokens"], "all": ["embed_tokens", "q_proj", "lm_head"]}
ORDERS = [("lora", "dora"), ("dora", "lora"), ("dora", "dora")]
each_target = pytest.mark.parametrize("targets", TARGETS)
each_order = pytest.mark.parametrize("methods", ORDERS)
KINDS = {"lora": (LoraLinear, LoraEmbedding), "dora": (DoraLinear, DoraEmbedding)}
pytestmark = pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings")


def peft(way: str, base: str, methods: tuple[str, str], targets: str) -> Any:
    """With adapters "default" and "b", the second of another rank."""
    configs = [
        LoraConfig(r=4 - index, target_modules=TARGETS[targets], use_dora=method == "dora")
        for index, method in enumerate(methods)
    ]
    model: Any = get_peft_model(BASES[base](), configs[0])
    disturb(model, 1)
    model.add_adapter("b", configs[1])
    model.set_adapter("b")
    disturb(model, 2)
    if way == "accelerated":
        lorafam.accelerate(model)
    return model


def saved(base: str, methods: tuple[str, str], targets: str, folder: Path) -> dict[str, torch.Tensor]:
    """Both adapters in PEFT's files, and their outputs."""
    model = peft("PEFT", base, methods, targets)
    model.save_pretrained(folder)
    (folder / "default").symlink_to(folder)
    out = {"b": logits(model)}
    model.set_adapter("default")
    return out | {"default": logits(model)}


@pytest.mark.parametrize("way", WAYS[:3])
@pytest.mark.parametrize("base", ["llama", "tied"])
@each_target
@each_order
def test_each_is_what_it_is_alone(way: str, base: str, methods: tuple[str, str], targets: str, tmp_path: Path) -> None:
    out = saved(base, methods, targets, tmp_path)
    for name in out:
        close(by_peft(tmp_path / name, BASES[base]()), out[name])
    if way in WAYS[:2]:
        theirs = peft(way, base, methods, targets)
        for name in ("b", "default", "b"):
            theirs.set_adapter(name)
            close(logits(theirs), out[name])
        return
    model = lorafam.load_adapter(BASES[base](), tmp_path)
    lorafam.load_adapter(model, tmp_path / "b", "b")
    for name in ("default", "b", "default", "b"):
        lorafam.set_adapter(model, name)
        close(logits(model), out[name])
        trained = {path for path, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {path for path in trained if f".adapters.{name}." in path} != set()
        method = methods[name == "b"]
        assert all(type(layer) in KINDS[method] for layer in adapter_layers(model).values())
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            close(logits(twin), out[name])
    # each with its own settings, whichever is active
    for name in out:
        lorafam.save_adapter(model, tmp_path / "again" / name, name)
        close(by_peft(tmp_path / "again" / name, BASES[base]()), out[name])
    # over one that isn't active
    lorafam.set_adapter(model, "default")
    disturb(model)
    lorafam.set_adapter(model, "b")
    lorafam.load_adapter(model, tmp_path, "default")
    close(logits(model), out["b"])
    lorafam.merge_and_unload(model)
    close(logits(model), out["b"])


@pytest.mark.parametrize("quantize", [None, "nf4"])
@each_target
@each_order
def test_trained_beside_each_other(methods: tuple[str, str], targets: str, quantize: str | None) -> None:
    model = lorafam.adapt(
        BASES["llama"](), AdapterConfig(methods[0], r=4, target_modules=TARGETS[targets], quantize=quantize)
    )
    disturb(model, 1)
    first = logits(model)
    lorafam.add_adapter(model, "b", AdapterConfig(methods[1], r=2, target_modules=TARGETS[targets]))
    close(logits(model), first)
    lorafam.set_adapter(model, "b")
    with lorafam.disabled(model):
        base = logits(model)
    close(logits(model), base)
    model.train()(tokens()).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    lorafam.set_adapter(model, "default")
    close(logits(model), first)
    lorafam.delete_adapter(model, "b")
    close(logits(model), first)


@pytest.mark.parametrize("active", ["default", "b"])
@each_target
def test_rows_choose_lora_beside_dora(active: str, targets: str, tmp_path: Path) -> None:
    out = saved("llama", ("lora", "dora"), targets, tmp_path)
    model = lorafam.load_adapter(BASES["llama"](), tmp_path)
    lorafam.load_adapter(model, tmp_path / "b", "b")
    lorafam.set_adapter(model, active)
    with lorafam.adapters_by_row(model, ["default", None]):
        mixed = logits(model)
    close(mixed[0], out["default"][0])
    close(mixed[1], logits(BASES["llama"]())[1])
    with (
        pytest.raises(ValueError, match=r"expected LoRA layers, '.*' is a Dora"),
        lorafam.adapters_by_row(model, ["default", "b"]),
    ):
        pass


@each_target
def test_a_dora_file_is_merged_in_files(targets: str, tmp_path: Path) -> None:
    base = BASES["tied" if targets == "all" else "llama"]
    base().save_pretrained(tmp_path / "model")
    theirs = peft("PEFT", "tied" if targets == "all" else "llama", ("dora", "dora"), targets)
    theirs.set_adapter("default")
    theirs.save_pretrained(tmp_path / "adapter", selected_adapters=["default"])
    lorafam.merge_files(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged", dtype="fp32")
    merged = type(base()).from_pretrained(tmp_path / "merged")
    close(logits(merged), logits(theirs))


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_a_table_with_dora_are_pefts(tied: bool, tmp_path: Path) -> None:
    base = BASES["tied" if tied else "llama"]
    model: Any = lorafam.adapt(base(), AdapterConfig("dora", r=4, target_modules=["embed_tokens", "q_proj"]))
    disturb(model)
    lorafam.save_adapter(model, tmp_path)
    theirs: Any = PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)
    for one in (model, theirs):
        one.train()(input_ids=tokens(), labels=tokens()).loss.backward()
    adapter = model.model.embed_tokens.adapters["default"]
    layer = theirs.base_model.model.model.embed_tokens
    close(adapter.A.grad, layer.lora_embedding_A["default"].grad)
    close(adapter.B.grad, layer.lora_embedding_B["default"].grad)
    close(adapter.magnitude.grad, layer.lora_magnitude_vector["default"].weight.grad.flatten())


@pytest.mark.parametrize("way", WAYS)
def test_dropped_inputs_over_a_base_with_hooks(way: str) -> None:
    """PEFT drops the input of what it adds to the base's output, whatever that is: loaded DoRA files train so."""
    settings = {"dora_dropout": "input"} if way in WAYS[2:] else {}
    model = Model(way, method="dora", dropout=0.5, **settings)
    model.base.register_forward_hook(lambda module, args, y: 1.5 * y + 1)
    model.net.train()
    x = rows(8)
    torch.manual_seed(7)
    y = model(x)
    torch.manual_seed(7)
    dropped = torch.nn.functional.dropout(x, 0.5).double()
    W, (A, B, scaling, magnitude) = model.weight(), model.factors()
    update = scaling * B.double() @ A.double()
    assert magnitude is not None
    c = magnitude.double() / (W + update).norm(dim=1)
    base = 1.5 * (x.double() @ W.T + model.base.bias.double()) + 1
    wanted = base + (c - 1) * (dropped @ W.T) + c * (dropped @ update.T)
    assert (y.double() - wanted).norm() / wanted.norm() < 1e-5
    y.sum().backward()
    assert A.grad is not None
    assert A.grad.isfinite().all()
    assert A.grad.any()


def test_each_adapter_drops_as_it_was_told() -> None:
    model = lorafam.adapt(BASES["llama"](), AdapterConfig("dora", r=4, dropout=0.5, target_modules=["q_proj"]))
    config = AdapterConfig("dora", 4, dropout=0.5, target_modules=["q_proj"], dora_dropout="input")
    lorafam.add_adapter(model, "b", config)
    layer: Any = next(iter(adapter_layers(model).values()))
    assert layer.dora_dropout == "adapter"
    lorafam.set_adapter(model, "b")
    assert layer.dora_dropout == "input"
