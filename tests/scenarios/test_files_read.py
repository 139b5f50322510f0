"""Files of every kind: read as PEFT reads them, or refused by name with the model as it was."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import lorafam
from lorafam import AdapterConfig
from tests.model.tiny import disturb, tiny_model, tokens
from tests.scenarios.files import gpt2

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(tokens()).logits


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def peft_file(folder: Path, base: nn.Module | None = None, **settings: Any) -> nn.Module:
    values = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **settings}
    theirs = get_peft_model(base or tiny_model(), LoraConfig(**values)).eval()
    theirs.save_pretrained(folder)
    return theirs


def setting(folder: Path, **values: Any) -> None:
    file = folder / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def renamed(folder: Path, change: Callable[[str], str]) -> None:
    save_file({change(name): tensor for name, tensor in load_file(folder / TENSORS).items()}, folder / TENSORS)


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / TENSORS), folder / "adapter_model.bin")
    os.remove(folder / TENSORS)


WAYS: dict[str, Callable[[Path], None]] = {
    "as it is": lambda folder: None,
    "torch.save": as_bin,
    "adapter's name": lambda folder: renamed(folder, lambda name: name.replace(".weight", ".default.weight")),
    "another's name": lambda folder: renamed(folder, lambda name: name.replace(".weight", ".french.weight")),
    "compiled": lambda folder: renamed(folder, lambda name: name.replace("model.model.", "model.model._orig_mod.")),
    "checkpointed": lambda folder: renamed(
        folder, lambda name: name.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn.")
    ),
    "data parallel": lambda folder: renamed(folder, lambda name: f"module.{name}"),
    "no targets": lambda folder: setting(folder, target_modules=None),
    "newer keys": lambda folder: setting(folder, use_novelty=False, novelty_config=None, novelties=[]),
    "gaussian": lambda folder: setting(folder, init_lora_weights="gaussian"),
    "eva": lambda folder: setting(folder, init_lora_weights="eva"),
    "orthogonal": lambda folder: setting(folder, init_lora_weights="orthogonal"),
}


@pytest.mark.parametrize("way", WAYS)
def test_read_as_peft_reads_it(way: str, tmp_path: Path) -> None:
    theirs = peft_file(tmp_path)
    WAYS[way](tmp_path)
    close(logits(lorafam.load_adapter(tiny_model(), tmp_path)), logits(theirs))


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"rank_pattern": {"v_proj": 6}}, {"lora_alpha": 32}])
def test_a_base_that_lost_a_part_loses_it_again(init: str, more: dict[str, Any], tmp_path: Path) -> None:
    theirs = peft_file(tmp_path / "theirs", init_lora_weights=init, **more)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = lorafam.load_adapter(tiny_model(), tmp_path / "theirs")
    close(logits(ours), logits(theirs))
    # written for the base as it was
    lorafam.save_adapter(ours, tmp_path / "ours")
    close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / "ours")), logits(theirs))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("more", [{}, {"rank_pattern": {"v_proj": 3, "embed_tokens": 5}}, {"use_rslora": True}])
def test_an_embedding_beside_them_keeps_its_table(more: dict[str, Any], init: str, dora: bool, tmp_path: Path) -> None:
    """As in PEFT: its adapter starts as ever."""
    targets = ["embed_tokens", "v_proj"]
    settings: dict[str, Any] = {"r": 4, "target_modules": targets, "use_dora": dora, **more}
    theirs = get_peft_model(tiny_model(), LoraConfig(**settings, init_lora_weights=init))
    disturb(theirs)
    want = logits(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = lorafam.load_adapter(tiny_model(), tmp_path / "theirs")
    close(logits(ours), want)
    rename = {"use_rslora": "rslora"}
    config = AdapterConfig("dora" if dora else "lora", r=4, target_modules=targets, init=init, dora_dropout="input")
    own = lorafam.adapt(tiny_model(), replace(config, **{rename.get(key, key): value for key, value in more.items()}))
    close(logits(own), logits(tiny_model()))
    disturb(own)
    for name, model in (("again", ours), ("own", own)):
        want = logits(model)
        lorafam.save_adapter(model, tmp_path / name)
        close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / name)), want)
        close(logits(lorafam.load_adapter(tiny_model(), tmp_path / name)), want)
        lorafam.merge_and_unload(model)
        close(logits(model), want)


@pytest.mark.parametrize("targets", [["attn.c_proj"], ["c_attn", "c_proj", "c_fc"]])
def test_a_conv1d_that_lost_a_part(targets: list[str], tmp_path: Path) -> None:
    theirs = get_peft_model(gpt2(), LoraConfig(r=4, target_modules=targets, init_lora_weights="pissa"))
    disturb(theirs)
    theirs.save_pretrained(tmp_path)
    close(logits(lorafam.load_adapter(gpt2(), tmp_path)), logits(theirs))
    # OLoRA takes the part the wrong way round: PEFT's model starts as another one
    square = get_peft_model(gpt2(), LoraConfig(r=4, target_modules=["attn.c_proj"], init_lora_weights="olora"))
    assert (logits(square) - logits(gpt2())).norm() > 0.01 * logits(gpt2()).norm()
    square.save_pretrained(tmp_path / "olora")
    with pytest.raises(ValueError, match=r"init_lora_weights = 'olora' is for .*, '.*attn\.c_proj' is a Conv1D"):
        lorafam.load_adapter(gpt2(), tmp_path / "olora")


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_such_a_file_is_refused_where_the_base_is_another(init: str, tmp_path: Path) -> None:
    peft_file(tmp_path / "theirs", init_lora_weights=init)
    adapted = lorafam.adapt(tiny_model(), AdapterConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for model, name in ((adapted, None), (adapted, "b")):
        before = logits(model)
        with pytest.raises(ValueError, match=f"init_lora_weights = '{init}'"):
            lorafam.load_adapter(model, tmp_path / "theirs", name)
        assert torch.equal(logits(model), before)
    tiny_model().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=f"init_lora_weights = '{init}'"):
        lorafam.merge_files(tmp_path / "model", tmp_path / "theirs", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "pissa by chance": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
    "corda": ({"init_lora_weights": "corda"}, "init_lora_weights = 'corda'"),
    "loftq": ({"init_lora_weights": "loftq"}, "init_lora_weights = 'loftq'"),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, "init_lora_weights = 'lora_ga'"),
    "unknown start": ({"init_lora_weights": "newest"}, "init_lora_weights = 'newest' is not known"),
    "start of a wrong type": ({"init_lora_weights": 3}, "init_lora_weights: expected true, false or a name, got 3"),
    "replicated layers": ({"layer_replication": [[0, 1]]}, r"layer_replication = \[\[0, 1\]\]"),
    "activated": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    "qalora": ({"use_qalora": True}, "use_qalora = True"),
    "block-diagonal": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    "arrow": ({"arrow_config": {"top_k": 2}}, "arrow_config"),
    "experts": ({"target_parameters": ["w"]}, "target_parameters"),
    "a newer key": ({"use_novelty": True}, "use_novelty = True is not supported"),
    "a newer number": ({"novelty": 0.5}, "novelty = 0.5 is not supported"),
    "flag as text": ({"use_rslora": "false"}, "use_rslora: expected true or false, got 'false'"),
    "flag as number": ({"use_dora": 1}, "use_dora: expected true or false, got 1"),
    "bias as text": ({"lora_bias": "no"}, "lora_bias: expected true or false, got 'no'"),
    "huge rank": ({"r": 10**9}, r"lora_A.weight' has shape \[4, 32\], expected \[1000000000, 32\]"),
    "other rank": ({"r": 3}, r"lora_A.weight' has shape \[4, 32\], expected \[3, 32\]"),
    "rank as text": ({"r": "4"}, "r: expected a positive integer, got '4'"),
    "alpha as text": ({"lora_alpha": "8"}, "lora_alpha: expected a number"),
    "pattern's rank": (
        {"rank_pattern": {"q_proj": 10**9}},
        r"q_proj.lora_A.weight' has shape \[4, 32\], expected \[1000000000, 32\]",
    ),
    "pattern no expression": ({"alpha_pattern": {"(": 4}}, "alpha_pattern, the key: '\\(' is no regular expression"),
    "targets no expression": ({"target_modules": "("}, "target_modules: '\\(' is no regular expression"),
    "targets of a wrong type": ({"target_modules": [1]}, "target_modules: expected names, got 1"),
    "other targets": ({"target_modules": ["k_proj"]}, "lacks"),
    "fewer targets": ({"target_modules": ["q_proj"]}, "no place for"),
    "no such layer": ({"layers_to_transform": [9]}, "no module is left"),
    "other kind": ({"peft_type": "LOHA"}, "expected peft_type ADALORA or LORA or VERA, got 'LOHA'"),
}


def state(model: nn.Module) -> list[Any]:
    kinds = [(name, type(module)) for name, module in model.named_modules()]
    return [kinds, [(name, p.requires_grad) for name, p in model.named_parameters()], dict(vars(model).get("_x", {}))]


@pytest.mark.parametrize("what", CHANGES)
def test_what_would_be_another_model_is_refused(what: str, tmp_path: Path) -> None:
    peft_file(tmp_path)
    values, message = CHANGES[what]
    setting(tmp_path, **values)
    model = tiny_model()
    before, out = state(model), logits(model)
    with pytest.raises(ValueError, match=message):
        lorafam.load_adapter(model, tmp_path)
    assert state(model) == before
    assert torch.equal(logits(model), out)
    assert not hasattr(model, "lorafam_config")


BAD_TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "NaN": lambda t: t.fill_(torch.nan),
    "inf": lambda t: t.fill_(torch.inf),
    "integers": lambda t: t.to(torch.int32),
    "booleans": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "another shape": lambda t: t.reshape(-1).contiguous(),
}


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("what", BAD_TENSORS)
def test_tensors_that_are_no_factors(what: str, bare: bool, tmp_path: Path) -> None:
    peft_file(tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    name = sorted(tensors)[-1]
    save_file({**tensors, name: BAD_TENSORS[what](tensors[name].clone())}, tmp_path / TENSORS)
    model = tiny_model()
    if not bare:
        lorafam.adapt(model, AdapterConfig(r=4, target_modules=["q_proj", "v_proj"]))
    before, out = state(model), logits(model)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        lorafam.load_adapter(model, tmp_path)
    assert state(model) == before
    assert torch.equal(logits(model), out)


def test_a_file_that_runs_code_is_not_read(tmp_path: Path) -> None:
    peft_file(tmp_path)
    os.remove(tmp_path / TENSORS)
    torch.save({"a": Path("x"), "b": os.getcwd}, tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin: damaged, or more than tensors"):
        lorafam.load_adapter(tiny_model(), tmp_path)


def test_two_adapters_in_one_file_are_ambiguous(tmp_path: Path) -> None:
    peft_file(tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    save_file(
        {n.replace(".weight", f".{a}.weight"): t.clone() for n, t in tensors.items() for a in "ab"}, tmp_path / TENSORS
    )
    with pytest.raises(ValueError, match="expected one adapter's"):
        lorafam.load_adapter(tiny_model(), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["q_proj", "embed_tokens"], ["embed_tokens", "lm_head"]])
def test_adapted_tables(targets: list[str], dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = peft_file(tmp_path / "theirs", tiny_model().to(dtype), target_modules=targets)
    assert any("base_layer" in name for name in load_file(tmp_path / "theirs" / TENSORS))
    want = logits(PeftModel.from_pretrained(tiny_model(), tmp_path / "theirs"))
    del theirs
    ours = lorafam.load_adapter(tiny_model(), tmp_path / "theirs")
    close(logits(ours), want)
    lorafam.save_adapter(ours, tmp_path / "ours")
    close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / "ours")), want)
    close(logits(lorafam.load_adapter(tiny_model(), tmp_path / "ours")), want)


@pytest.mark.parametrize("tied", [False, True])
def test_tables_beside_an_adapter(tied: bool, tmp_path: Path) -> None:
    def base() -> nn.Module:
        model = tiny_model()
        if tied:
            model.lm_head.weight = model.model.embed_tokens.weight
        return model

    theirs = get_peft_model(base(), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    with torch.no_grad():
        theirs.base_model.model.model.embed_tokens.weight.mul_(1.5)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=True)
    ours = lorafam.load_adapter(base(), tmp_path / "theirs")
    close(logits(ours), logits(theirs))
    lorafam.save_adapter(ours, tmp_path / "ours")
    close(logits(PeftModel.from_pretrained(base(), tmp_path / "ours")), logits(theirs))


def test_another_table_is_not_put_under_two_adapters(tmp_path: Path) -> None:
    other = copy.deepcopy(tiny_model())
    other.model.embed_tokens.weight.data.mul_(1.5)
    peft_file(tmp_path, other, target_modules=["embed_tokens"])
    model = lorafam.adapt(tiny_model(), AdapterConfig(r=4, target_modules=["embed_tokens"]))
    out = logits(model)
    with pytest.raises(ValueError, match=r"has another 'model\.embed_tokens\.weight' than the model"):
        lorafam.load_adapter(model, tmp_path, "b")
    assert torch.equal(logits(model), out)


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled model": torch.compile,
    "compiled block": lambda model: (model.__setitem__(0, torch.compile(model[0])), model)[1],  # type: ignore[func-returns-value]
    "checkpointed block": lambda model: (model.__setitem__(0, checkpoint_wrapper(model[0])), model)[1],  # type: ignore[func-returns-value]
    "data parallel": nn.DataParallel,
}


def blocks() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 8))


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_names_are_the_bare_models(wrapper: str, tmp_path: Path) -> None:
    model = lorafam.adapt(blocks(), AdapterConfig(r=4, target_modules=["0.0", "1"], rank_pattern={"0.0": 2}))
    for parameter in model.parameters():
        parameter.data.normal_()
    lorafam.save_adapter(model, tmp_path / "bare")
    wrapped = WRAPPED[wrapper](model)
    lorafam.save_adapter(wrapped, tmp_path / "wrapped")
    for file in (CONFIG, TENSORS):
        assert (tmp_path / "bare" / file).read_bytes() == (tmp_path / "wrapped" / file).read_bytes()
    lorafam.load_adapter(wrapped, tmp_path / "bare")


class Around(nn.Module):
    """A model whose part is called as wrappers call theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.module = blocks()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


def test_a_part_that_is_called_module(tmp_path: Path) -> None:
    model = lorafam.adapt(Around(), AdapterConfig(r=4, target_modules=["1"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    x = torch.randn(3, 8)
    lorafam.save_adapter(model, tmp_path)
    for base in (Around, blocks):
        torch.testing.assert_close(lorafam.load_adapter(base(), tmp_path)(x), model(x))
    torch.testing.assert_close(PeftModel.from_pretrained(Around(), tmp_path)(x), model(x))


def test_a_model_in_data_parallel_is_adapted(tmp_path: Path) -> None:
    model = nn.DataParallel(blocks())
    assert lorafam.adapt(model, AdapterConfig(r=4, target_modules=["1"])) is model
    lorafam.add_adapter(model, "b")
    for parameter in model.parameters():
        parameter.data.normal_()
    lorafam.save_adapter(model, tmp_path)
    x = torch.randn(3, 8)
    bare = blocks()
    bare.load_state_dict({name.replace(".base_layer", ""): p for name, p in model.module.state_dict().items()}, False)
    torch.testing.assert_close(lorafam.load_adapter(bare, tmp_path)(x), model(x))
    wanted = model(x)
    lorafam.merge_and_unload(model)
    torch.testing.assert_close(model(x), wanted)


def test_a_module_that_is_saved_whole_in_a_wrapper(tmp_path: Path) -> None:
    model = lorafam.adapt(blocks(), AdapterConfig(r=4, target_modules=["1"], modules_to_save=["0.0"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    lorafam.save_adapter(model, tmp_path)
    x = torch.randn(3, 8)
    wanted = model(x)
    model[0][0] = torch.compile(model[0][0], backend="eager")  # type: ignore[index,operator]
    lorafam.load_adapter(model, tmp_path)
    lorafam.load_adapter(model, tmp_path, "b")
    lorafam.set_adapter(model, "b")
    torch.testing.assert_close(model(x), wanted)
