"""What PEFT's files have beside LoRA's factors: biases, tokens' rows, tables, heads; in any state, and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import lorafam
from lorafam import AdapterConfig
from lorafam.model import adapter_layers
from tests.model.tiny import disturb
from tests.scenarios.files import BASES, FILES, QV, by_peft, close, llama, logits, peft_file, qwen

each_file = pytest.mark.parametrize("name", FILES)


@each_file
def test_both_ways(name: str, tmp_path: Path) -> None:
    base, settings = FILES[name]
    make = BASES[base]
    peft_file(tmp_path / "theirs", make(), **settings)
    want = by_peft(tmp_path / "theirs", make())
    assert (want - logits(make())).norm() > 0.01 * want.norm()
    ours = lorafam.load_adapter(make(), tmp_path / "theirs")
    close(logits(ours), want)
    lorafam.save_adapter(ours, tmp_path / "ours")
    close(by_peft(tmp_path / "ours", make()), want)
    close(logits(lorafam.load_adapter(make(), tmp_path / "ours")), want)
    # over itself, after more training
    disturb(ours, 7)
    assert (logits(ours) - want).norm() > 1e-3 * want.norm()
    close(logits(lorafam.load_adapter(ours, tmp_path / "theirs")), want)
    lorafam.merge_and_unload(ours)
    close(logits(ours), want)
    ours.save_pretrained(tmp_path / "unloaded")
    close(logits(type(ours).from_pretrained(tmp_path / "unloaded")), want)


@each_file
def test_merged_files(name: str, tmp_path: Path) -> None:
    base, settings = FILES[name]
    model = BASES[base]()
    peft_file(tmp_path / "adapter", BASES[base](), **settings)
    model.save_pretrained(tmp_path / "model")
    lorafam.merge_files(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged", max_shard_size="20KB")
    merged, told = type(model).from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    close(logits(merged), by_peft(tmp_path / "adapter", model))


@each_file
def test_beside_another(name: str, tmp_path: Path) -> None:
    """A file that leaves the base as it is joins any adapter; one that changes it is refused where another is there."""
    base, settings = FILES[name]
    make = BASES[base]
    method = "dora" if settings.get("use_dora") else "lora"
    peft_file(tmp_path / "b", make(), **settings)
    model = lorafam.adapt(make(), AdapterConfig(r=3, method=method, target_modules=r".*\.0\..*(v_proj|o_proj|c_fc)"))
    disturb(model, 5)
    first = logits(model)
    modules = [module_name for module_name, _ in model.named_modules()]
    if settings.get("bias"):
        with pytest.raises(ValueError, match=r"has another '.*bias' than the model, whose adapters share it"):
            lorafam.load_adapter(model, tmp_path / "b", "b")
        assert [module_name for module_name, _ in model.named_modules()] == modules
    else:
        lorafam.load_adapter(model, tmp_path / "b", "b")
        close(logits(model), first)
        lorafam.set_adapter(model, "b")
        close(logits(model), by_peft(tmp_path / "b", make()))
        with lorafam.disabled(model):
            close(logits(model), logits(make()))
        lorafam.save_adapter(model, tmp_path / "again")
        close(by_peft(tmp_path / "again", make()), logits(model))
        lorafam.set_adapter(model, "default")
        lorafam.delete_adapter(model, "b")
    assert torch.equal(logits(model), first)


MODES: dict[str, Any] = {
    "disabled": lambda model: lorafam.disabled(model).__enter__(),
    "training": lambda model: model.train(),
    "merged": lambda model: [layer.merge() for layer in adapter_layers(model).values()],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", ["all biases and the adapter's", "embeddings", "tokens, tied head", "tied head saved whole"]
)
def test_saved_in_any_mode(name: str, mode: str, tmp_path: Path) -> None:
    base, settings = FILES[name]
    make = BASES[base]
    other = make()
    with torch.no_grad():
        # a table that isn't the base's any more
        other.get_input_embeddings().weight.mul_(1.1)
    peft_file(tmp_path / "theirs", other, **settings)
    model = lorafam.load_adapter(make(), tmp_path / "theirs").eval()
    lorafam.save_adapter(model, tmp_path / "before")
    MODES[mode](model)
    lorafam.save_adapter(model, tmp_path / "then")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "before" / file).read_bytes() == (tmp_path / "then" / file).read_bytes()
    if mode == "merged":
        with pytest.raises(ValueError, match="is merged, unmerge it before"):
            lorafam.load_adapter(model, tmp_path / "theirs")
    else:
        lorafam.load_adapter(model, tmp_path / "theirs")
        lorafam.save_adapter(model, tmp_path / "again")
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "before" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "all biases": ("qwen", {"base_bias": "all"}),
    "lora_only": ("qwen", {"base_bias": "lora_only"}),
    "biases and nf4": ("qwen", {"base_bias": "all", "quantize": "nf4"}),
    "tokens": ("llama", {"trainable_token_indices": [1, 5]}),
    "tokens, tied": ("tied", {"trainable_token_indices": [1, 5]}),
}


@pytest.mark.parametrize("name", OWN)
def test_trained_by_lorafam(name: str, tmp_path: Path) -> None:
    base, settings = OWN[name]
    ours = lorafam.adapt(BASES[base](), AdapterConfig(r=4, target_modules=QV, **settings))
    keys = {"base_bias": "bias", "trainable_token_indices": "trainable_token_indices"}
    theirs = get_peft_model(
        BASES[base](),
        LoraConfig(r=4, target_modules=QV, **{keys[k]: v for k, v in settings.items() if k in keys}),
    )
    count = sum(parameter.numel() for parameter in ours.parameters() if parameter.requires_grad)
    assert count == sum(parameter.numel() for parameter in theirs.parameters() if parameter.requires_grad)
    ours.train()(torch.arange(10).unsqueeze(0), labels=torch.arange(10).unsqueeze(0)).loss.backward()
    assert all(parameter.grad is not None for parameter in ours.parameters() if parameter.requires_grad)
    disturb(ours)
    want = logits(ours)
    lorafam.save_adapter(ours, tmp_path)
    if settings.get("quantize"):
        prepared = lorafam.adapt(BASES[base](), AdapterConfig(r=4, target_modules=QV, quantize="nf4"))
        close(logits(lorafam.load_adapter(prepared, tmp_path)), want)
    else:
        close(by_peft(tmp_path, BASES[base]()), want)


def test_a_tokens_row_has_the_gradient_of_the_tables() -> None:
    """As PEFT's, the tied head's share too."""
    ids = torch.tensor([[1, 5, 9, 5]])
    ours = lorafam.adapt(llama(tied=True), AdapterConfig(r=4, target_modules=QV, trainable_token_indices=[1, 5]))
    theirs = get_peft_model(llama(tied=True), LoraConfig(r=4, target_modules=QV, trainable_token_indices=[1, 5]))
    for model in (ours, theirs):
        model(ids, labels=ids).loss.backward()
    (found,) = [p.grad for n, p in ours.named_parameters() if ".rows." in n]
    (want,) = [p.grad for n, p in theirs.named_parameters() if "trainable_tokens_delta" in n]
    close(found, want)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainable_token_indices": [50]}, "expected tokens below 50"),
        ({"trainable_token_indices": {"embed": [1], "nothing": [2]}}, "no module is called"),
        ({"trainable_token_indices": {"norm": [1]}}, "expected an nn.Embedding"),
        (
            {"trainable_token_indices": [1], "target_modules": ["embed_tokens"]},
            "'model.embed_tokens' is adapted or trained whole",
        ),
        (
            {"trainable_token_indices": [1], "modules_to_save": ["embed_tokens"]},
            "'model.embed_tokens' is adapted or trained whole",
        ),
    ],
)
def test_tokens_that_can_not_be(settings: dict[str, Any], message: str) -> None:
    model = llama()
    before = [(name, id(module)) for name, module in model.named_modules()]
    with pytest.raises(ValueError, match=f"trainable_token_indices: .*{message}"):
        lorafam.adapt(model, AdapterConfig(**{"r": 4, "target_modules": QV, **settings}))
    assert [(name, id(module)) for name, module in model.named_modules()] == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_other_parameters_that_somebody_trained_are_the_bases(tmp_path: Path) -> None:
    """LongLoRA's files have the norms beside the adapter; PEFT puts them into the model."""
    model = get_peft_model(llama(), LoraConfig(r=4, target_modules=QV, init_lora_weights=False))
    norms = {n: p for n, p in model.named_parameters() if "norm" in n}
    for parameter in norms.values():
        parameter.data.mul_(1.5)
    model.save_pretrained(tmp_path, state_dict=None)
    from safetensors.torch import save_file

    file = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(file), **{n: p.detach().clone() for n, p in norms.items()}}, file)
    ours = lorafam.load_adapter(llama(), tmp_path)
    close(logits(ours), logits(model))
    lorafam.save_adapter(ours, tmp_path / "again")
    assert norms.keys() <= load_file(tmp_path / "again" / "adapter_model.safetensors").keys()


def test_the_shared_biases_stay_trainable_beside_another() -> None:
    model = lorafam.adapt(qwen(), AdapterConfig(r=4, target_modules=QV, base_bias="all"))
    before = {n for n, p in model.named_parameters() if p.requires_grad}
    lorafam.add_adapter(model, "b", AdapterConfig(r=2, target_modules=["k_proj"]))
    after = {n.replace(".base_layer.bias", ".bias") for n, p in model.named_parameters() if p.requires_grad}
    assert after == {n.replace(".base_layer.bias", ".bias") for n in before}
    assert sum("b" in layer.adapters for layer in adapter_layers(model).values()) == 2


SHARED = [name for name, (_, settings) in FILES.items() if "bias" in settings or "embed_tokens" in str(settings)]


@pytest.mark.parametrize("name", SHARED)
def test_the_names_in_a_file_are_its_own_adapters(name: str, tmp_path: Path) -> None:
    """Modules that another adapter is on are bare ones for this: their biases and tables are called so."""
    base, settings = FILES[name]
    peft_file(tmp_path / "one", BASES[base](), **settings)
    other = ["c_fc", "c_proj"] if base == "gpt2" else ["k_proj", "o_proj"]
    other = [one for one in other if one not in settings.get("modules_to_save", [])]
    want = by_peft(tmp_path / "one", BASES[base]())
    model = lorafam.load_adapter(BASES[base](), tmp_path / "one")
    lorafam.add_adapter(model, "two", AdapterConfig(r=2, target_modules=other))
    lorafam.save_adapter(model, tmp_path / "again", "default")
    close(by_peft(tmp_path / "again", BASES[base]()), want)
    names = [set(load_file(tmp_path / one / "adapter_model.safetensors")) for one in ("one", "again")]
    assert not any(".base_layer." in key for key in names[1] - names[0])


CHANGED: dict[str, dict[str, Any]] = {
    "biases": {"target_modules": QV, "bias": "all"},
    "biases of adapted layers": {"target_modules": QV, "bias": "lora_only"},
}


@pytest.mark.parametrize("adapter", ["b", None])
@pytest.mark.parametrize("how", [*CHANGED, "trained here", "merged here"])
def test_a_file_for_the_base_as_it_was_is_not_put_on_another(how: str, adapter: str | None, tmp_path: Path) -> None:
    """PEFT takes it, and it is another model."""
    peft_file(tmp_path / "plain", qwen(), target_modules=["k_proj"] if adapter else QV)
    want = by_peft(tmp_path / "plain", qwen())
    model: Any = qwen()
    if how in CHANGED:
        peft_file(tmp_path / "first", qwen(), **CHANGED[how])
        lorafam.load_adapter(model, tmp_path / "first")
        theirs = PeftModel.from_pretrained(qwen(), tmp_path / "first")
        theirs.load_adapter(tmp_path / "plain", "b")
        theirs.set_adapter("b")
        assert (logits(theirs) - want).norm() > 1e-2 * want.norm()
    else:
        lorafam.adapt(
            model, AdapterConfig(r=4, target_modules=QV, base_bias="all" if how == "trained here" else "none")
        )
        if how == "trained here":
            # nothing is changed yet
            peft_file(tmp_path / "early", qwen(), target_modules=["o_proj"])
            lorafam.load_adapter(model, tmp_path / "early", "early")
            lorafam.delete_adapter(model, "early")
        disturb(model)
        if how == "merged here":
            lorafam.merge_and_unload(model, keep_unmerged=["q_proj"])
    before = logits(model)
    modules = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=r"model: its '.*' was trained, merged into or loaded with an adapter"):
        lorafam.load_adapter(model, tmp_path / "plain", adapter)
    assert torch.equal(logits(model), before)
    assert [name for name, _ in model.named_modules()] == modules
    # its own file has them
    lorafam.save_adapter(model, tmp_path / "own")
    lorafam.load_adapter(model, tmp_path / "own")
    close(logits(model), before)
    close(logits(lorafam.load_adapter(qwen(), tmp_path / "own")), before)


def test_biases_within_a_module_saved_whole_are_read(tmp_path: Path) -> None:
    """PEFT writes them twice."""
    peft_file(tmp_path, BASES["gpt2"](), target_modules=["c_attn"], modules_to_save=["h.1.mlp"], bias="all")
    assert any(".modules_to_save." in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    close(logits(lorafam.load_adapter(BASES["gpt2"](), tmp_path)), by_peft(tmp_path, BASES["gpt2"]()))


@pytest.mark.parametrize("name", [name for name, (_, settings) in FILES.items() if "bias" in settings])
def test_what_is_trained_is_what_peft_trains(name: str, tmp_path: Path) -> None:
    """A bias of a module that is trained whole is its copy's alone."""
    base, settings = FILES[name]
    for more in ({}, {"modules_to_save": ["ln_f" if base == "gpt2" else "v_proj"]}):
        if more and "modules_to_save" not in settings:
            settings = settings | more
        peft_file(tmp_path, BASES[base](), **settings)
        theirs = get_peft_model(BASES[base](), LoraConfig(r=4, **settings))
        model = lorafam.load_adapter(BASES[base](), tmp_path)
        counts = [sum(p.numel() for p in one.parameters() if p.requires_grad) for one in (model, theirs)]
        assert counts[0] == counts[1]
        if base == "gpt2":
            model(torch.arange(5).unsqueeze(0)).logits.square().sum().backward()
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
