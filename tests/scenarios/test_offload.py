"""accelerate's CPU and disk offload of an adapted model, or of a base that is adapted afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

import lorafam
from lorafam.methods import AdapterLayer
from tests.model.tiny import disturb, tokens

METHODS = ["lora", "dora", "adalora"]
PARTS = ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")


def dispatched(model: Any, folder: Path) -> None:
    places = {f"model.{part}": "disk" if part in ("layers.1", "norm") else "cpu" for part in PARTS}
    places["lm_head"] = "cpu"
    dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


OFFLOADS: dict[str, Callable[[Any, Path], object]] = {
    "cpu": lambda model, _: cpu_offload(model, "cpu"),
    "cpu, buffers too": lambda model, _: cpu_offload(model, "cpu", offload_buffers=True),
    "disk": lambda model, folder: disk_offload(model, str(folder), "cpu"),
    "device map": dispatched,
}
each_offload = pytest.mark.parametrize("offload", OFFLOADS)
each_method = pytest.mark.parametrize("method", METHODS)


def tiny_model() -> Any:
    """With biases: an offloaded one isn't there after its layer has run."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2}
    more = {"attention_bias": True, "mlp_bias": True, "max_position_embeddings": 64}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=2, **sizes, **more))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def made(method: str, quantize: str | None = None) -> Any:
    config = lorafam.AdapterConfig(
        method=method, r=4, target_modules=["q_proj", "down_proj", "lm_head"], quantize=quantize
    )
    model = lorafam.adapt(tiny_model(), config)
    disturb(model)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(tokens()).logits


@each_offload
@each_method
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_an_offloaded_model_computes_the_same(offload: str, method: str, quantize: str | None, tmp_path: Path) -> None:
    """Plain PEFT's LoRA does; its DoRA and AdaLoRA raise."""
    model = made(method, quantize)
    wanted = logits(model)
    lorafam.save_adapter(model, tmp_path / "before")
    OFFLOADS[offload](model, tmp_path)
    for _ in range(2):
        torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-5)
    lorafam.save_adapter(model, tmp_path / "after")
    name = "adapter_model.safetensors"
    assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    remove_hook_from_submodules(model)
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-5)


@each_offload
@each_method
def test_an_offloaded_base_is_adapted_trained_and_merged(offload: str, method: str, tmp_path: Path) -> None:
    """With cpu_offload and disk_offload plain PEFT computes with memory that nobody has written."""
    source = made(method)
    wanted = logits(source)
    lorafam.save_adapter(source, tmp_path / "adapter")
    model: Any = tiny_model().eval()
    OFFLOADS[offload](model, tmp_path)
    lorafam.load_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-5)
    model(tokens(), labels=tokens()).loss.backward()
    source(tokens(), labels=tokens()).loss.backward()
    for mine, theirs in zip(model.modules(), source.modules(), strict=True):
        if isinstance(mine, AdapterLayer):
            torch.testing.assert_close(mine.B.grad, theirs.B.grad, rtol=1e-3, atol=1e-6)
    lorafam.merge_and_unload(model)
    torch.testing.assert_close(logits(model), wanted, rtol=1e-3, atol=1e-4)


def test_a_device_map_is_as_with_peft(tmp_path: Path) -> None:
    source = made("lora")
    lorafam.save_adapter(source, tmp_path / "adapter")
    theirs, ours = tiny_model().eval(), tiny_model().eval()
    for name, model in (("theirs", theirs), ("ours", ours)):
        dispatched(model, tmp_path / name)
    theirs = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    lorafam.load_adapter(ours, tmp_path / "adapter")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-5)


@each_offload
def test_what_is_offloaded_can_not_be_trained(offload: str, tmp_path: Path) -> None:
    """PEFT's backward raises; ours would be lost."""
    model = made("lora")
    OFFLOADS[offload](model, tmp_path)
    if offload == "device map":
        # the first block is there
        del model.model.layers[0]
    with pytest.raises(RuntimeError, match="the adapter is offloaded, so that what it learns would be lost"):
        model.train()(tokens())


@pytest.mark.parametrize("settings", [{"quantize": "nf4"}, {"init": "pissa"}])
def test_a_weight_that_is_not_there_is_not_taken(settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model()
    cpu_offload(model, "cpu")
    with pytest.raises(ValueError, match="has no weight yet"):
        lorafam.adapt(model, lorafam.AdapterConfig(r=4, **settings))
