"""VeRA beside PEFT's: projections, results, gradients and files, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import lorafam
from lorafam import AdapterConfig, VeraLinear
from lorafam.model import adapter_layers
from lorafam.model.trainable import load_trainable, save_trainable
from tests.model.tiny import disturb, tiny_model, tokens

RANK, KEY = 6, 5
TARGETS = ["q_proj", "k_proj", "down_proj"]


def ours(key: int = KEY, **settings: Any) -> torch.nn.Module:
    own = {"projection_prng_key": key, **settings.pop("own", {})}
    config = AdapterConfig(method="vera", r=RANK, target_modules=TARGETS, method_settings=own, **settings)
    return lorafam.adapt(tiny_model(), config)


def theirs(**settings: Any) -> torch.nn.Module:
    config = VeraConfig(r=RANK, target_modules=TARGETS, projection_prng_key=KEY, **settings)
    return get_peft_model(tiny_model(), config)


def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(tokens()).logits


def vectors(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_the_projections_are_pefts() -> None:
    tuner: Any = theirs().base_model
    for layer in adapter_layers(ours()).values():
        active: Any = layer.active
        A, B = active.projections.whole()
        assert torch.equal(A, tuner.vera_A["default"])
        assert torch.equal(B, tuner.vera_B["default"])
        assert torch.equal(active.A, A[:, : layer.in_features])
        assert torch.equal(active.B, B[: layer.out_features])


def test_one_pair_for_all_layers() -> None:
    one, *others = [layer.active for layer in adapter_layers(ours()).values()]
    assert all(other.projections is one.projections for other in others)
    assert sum(p.numel() for p in vectors(ours())) == sum(p.numel() for p in vectors(theirs()))


def test_trains_as_peft_does() -> None:
    """Five steps of SGD from the same start: the vectors and the losses."""
    models = ours(), theirs()
    results = []
    for model in models:
        model.train()
        optimizer = torch.optim.SGD(vectors(model), lr=0.5)
        losses = []
        for _ in range(5):
            loss = model(tokens(), labels=tokens()).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        results.append(torch.tensor(losses))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(models[0]), logits(models[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("save_projection", [True, False])
def test_files_both_ways(save_projection: bool, tmp_path: Path) -> None:
    model = ours(own={"save_projection": save_projection})
    disturb(model)
    lorafam.save_adapter(model, tmp_path / "ours")
    expected = logits(model)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / "ours")), expected)
    assert torch.equal(logits(lorafam.load_adapter(tiny_model(), tmp_path / "ours")), expected)
    peft = theirs(save_projection=save_projection)
    disturb(peft, 2)
    peft.save_pretrained(tmp_path / "theirs")
    loaded = lorafam.load_adapter(tiny_model(), tmp_path / "theirs")
    torch.testing.assert_close(logits(loaded), logits(peft), rtol=1e-4, atol=1e-5)
    lorafam.save_adapter(loaded, tmp_path / "again")
    written, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "again"))
    assert written.keys() == again.keys()
    assert all(torch.equal(written[name], again[name]) for name in written)
    # over an adapter that is there, and beside another
    lorafam.load_adapter(model, tmp_path / "theirs")
    torch.testing.assert_close(logits(model), logits(peft), rtol=1e-4, atol=1e-5)
    lorafam.load_adapter(model, tmp_path / "ours", "b")
    lorafam.set_adapter(model, "b")
    assert torch.equal(logits(model), expected)


def other_projections(folder: Path) -> dict[str, torch.Tensor]:
    """A file whose projections aren't those of its key, as another version of torch may draw them."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in ("base_model.vera_A", "base_model.vera_B"):
        tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    return tensors


def test_projections_of_a_file_count(tmp_path: Path) -> None:
    peft = theirs()
    disturb(peft)
    peft.save_pretrained(tmp_path)
    other_projections(tmp_path)
    expected = logits(PeftModel.from_pretrained(tiny_model(), tmp_path))
    loaded = lorafam.load_adapter(tiny_model(), tmp_path)
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-5)
    # the vectors alone would be another model elsewhere
    with pytest.raises(ValueError, match="the state is for other projections"):
        ours().load_state_dict(loaded.state_dict())


def test_what_is_trained_goes_on_with_the_same_projections_alone(tmp_path: Path) -> None:
    model = ours()
    disturb(model)
    save_trainable(model, tmp_path)
    again = ours()
    load_trainable(again, tmp_path)
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(ValueError, match=r"doesn't fit the model, they differ in .*projections"):
        load_trainable(ours(key=KEY + 1), tmp_path)


def test_a_file_always_tells_its_projections(tmp_path: Path) -> None:
    """A further adapter has its own key; projections that aren't their key's are saved, whatever was asked for."""
    model = ours(own={"save_projection": False})
    config = AdapterConfig(method="vera", r=4, target_modules=["k_proj"], method_settings={"projection_prng_key": 9})
    lorafam.add_adapter(model, "b", config)
    lorafam.set_adapter(model, "b")
    disturb(model, 3)
    lorafam.save_adapter(model, tmp_path / "b", "b")
    close = torch.testing.assert_close
    close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / "b")), logits(model), rtol=1e-4, atol=1e-5)
    peft = theirs()
    disturb(peft)
    peft.save_pretrained(tmp_path / "other")
    other_projections(tmp_path / "other")
    loaded = lorafam.load_adapter(tiny_model(), tmp_path / "other")
    loaded.lorafam_config = AdapterConfig(method="vera", r=RANK, method_settings={"save_projection": False})
    lorafam.save_adapter(loaded, tmp_path / "again")
    assert torch.equal(logits(lorafam.load_adapter(tiny_model(), tmp_path / "again")), logits(loaded))


@pytest.mark.parametrize("first", ["lora", "vera"])
def test_beside_another_method_on_other_modules(first: str, tmp_path: Path) -> None:
    configs = {
        "lora": AdapterConfig(r=3, alpha=5, init="gaussian", target_modules=["v_proj"], rank_pattern={"0.*v_proj": 2}),
        "vera": AdapterConfig(method="vera", r=RANK, target_modules=["k_proj"], method_settings={"d_initial": 0.3}),
    }
    second = "vera" if first == "lora" else "lora"
    model = lorafam.adapt(tiny_model(), configs[first])
    lorafam.add_adapter(model, "b", configs[second])
    lorafam.set_adapter(model, "b")
    disturb(model)
    lorafam.save_adapter(model, tmp_path, "b")
    again = lorafam.load_adapter(tiny_model(), tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("save_projection", [True, False])
def test_merged_files(save_projection: bool, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    peft = theirs(save_projection=save_projection)
    disturb(peft)
    peft.save_pretrained(tmp_path / "adapter")
    if save_projection:
        other_projections(tmp_path / "adapter")
    expected = logits(PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").merge_and_unload())
    lorafam.merge_files(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")
    merged = type(tiny_model()).from_pretrained(tmp_path / "merged", attn_implementation="eager")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_merging_and_moving(quantize: str | None) -> None:
    model = ours(quantize=quantize).eval()
    disturb(model)
    expected = logits(model)
    torch.testing.assert_close(logits(model.double()).float(), expected, rtol=1e-3, atol=1e-4)
    if quantize is None:
        lorafam.merge_and_unload(model)
        assert not adapter_layers(model)
        torch.testing.assert_close(logits(model).float(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"alpha": 8}, "alpha: VeRA has none"),
        ({"rslora": True}, "rslora: VeRA has none"),
        ({"init": "pissa"}, "init: VeRA has none"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern: VeRA has none"),
        (
            {"method_settings": {"d_init": 1}},
            "method_settings: the method 'vera' has no 'd_init'; did you mean d_initial",
        ),
        ({"method_settings": {"d_initial": -1}}, "d_initial: expected a finite number"),
        ({"method_settings": {"projection_prng_key": 1.5}}, "projection_prng_key: expected an integer"),
        ({"method_settings": {"save_projection": "yes"}}, "save_projection: expected True or False"),
        ({"target_parameters": ["experts"]}, "target_parameters: expected method 'lora'"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
    ],
)
def test_refused_settings(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        lorafam.adapt(tiny_model(), AdapterConfig(**{"method": "vera", "r": RANK, **settings}))


@pytest.mark.parametrize("change", ["missing", "shape", "key"])
def test_refused_files(change: str, tmp_path: Path) -> None:
    lorafam.save_adapter(ours(), tmp_path)
    file, told = tmp_path / "adapter_model.safetensors", "lacks 'base_model.vera_A'"
    tensors = load_file(file)
    if change == "missing":
        del tensors["base_model.vera_A"]
    elif change == "shape":
        tensors["base_model.vera_B"], told = tensors["base_model.vera_B"][1:].contiguous(), "projections: expected"
    else:
        values = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**values, "projection_prng_key": "five"}))
        told = "projection_prng_key: expected an integer"
    save_file(tensors, file, metadata={"format": "pt"})
    model = tiny_model()
    before = logits(model)
    with pytest.raises(ValueError, match=told):
        lorafam.load_adapter(model, tmp_path)
    assert torch.equal(logits(model), before)


def test_a_layer_alone() -> None:
    layer = VeraLinear(torch.nn.Linear(8, 6), r=4, d_initial=0.5)
    assert torch.equal(layer.active.d, torch.full((4,), 0.5))
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x), layer.base_layer(x))
    with torch.no_grad():
        layer.active.b.normal_()
    expected = layer.base_layer(x) + layer.active.b * ((layer.active.d * (x @ layer.A.T)) @ layer.B.T)
    torch.testing.assert_close(layer(x), expected)
