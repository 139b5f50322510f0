from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from lorafam.finetune import InputError
from lorafam.finetune.base_model import check_length, check_model_path, load_base_model, load_tokenizer


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_loads_a_folder_in_the_dtype_asked_for(model_folder: Path) -> None:
    check_model_path(str(model_folder))
    model = load_base_model(str(model_folder), "bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert load_tokenizer(str(model_folder)).bos_token == "<bos>"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no/such/model", "no such folder: no/such/model"),
        ("./model", "no such folder"),
        ("../model", "no such folder"),
        ("/model", "no such folder"),
        ("a model", "no such folder"),
        ("model.gguf", "no such file"),
        ("folder", "has no config.json"),
        ("file", "expected a model folder or a .gguf file, got the file"),
        ("false.gguf", "is not a GGUF file"),
    ],
)
def test_no_model_there(model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("file", "false.gguf"):
        (tmp_path / name).write_text("something else")
    with pytest.raises(InputError, match=rf"^model: .*{message}"):
        check_model_path(model)


def test_hub_names_are_left_to_the_hub() -> None:
    check_model_path("google/gemma-3-270m")
    check_model_path("gpt2")


def test_name_the_hub_does_not_give() -> None:
    with pytest.raises(InputError, match=r"^model: no folder here is called nobody/nothing-here, and the hub") as error:
        load_tokenizer("nobody/nothing-here")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_model(name: str, model_folder: Path, tmp_path: Path) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 100 if file.name == name else None])
    with pytest.raises(InputError, match=r"^model: the model in .* can't be read: ") as error:
        load_base_model(str(tmp_path), "float32")
    assert "\n" not in str(error.value)


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A one-layer Llama in GGUF's names, weights in Q8_0."""
    generator = np.random.default_rng(0)
    shapes = {
        "token_embd": (40, 32),
        "output_norm": (32,),
        "output": (40, 32),
        **{f"blk.0.{name}": (32, 32) for name in ("attn_q", "attn_k", "attn_v", "attn_output")},
        **{f"blk.0.{name}": (64, 32) for name in ("ffn_gate", "ffn_up")},
        "blk.0.ffn_down": (32, 64),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(40)
    writer.add_rope_dimension_count(8)
    values = {}
    for name, shape in shapes.items():
        values[name] = generator.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values[name])
        else:
            packed = gguf.quants.quantize(values[name], gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def test_gguf_is_decoded_and_can_be_trained(tmp_path: Path) -> None:
    """Loaded from 8-bit blocks, the model is dense; Trainer would refuse one that is marked as quantised."""
    path = tmp_path / "model.gguf"
    values = write_gguf(path)
    check_model_path(str(path))
    model = load_base_model(str(path), "float32")
    weight = model.model.layers[0].mlp.down_proj.weight
    assert type(weight) is torch.nn.Parameter
    np.testing.assert_allclose(weight.detach().numpy(), values["blk.0.ffn_down"], atol=0.02)
    Trainer(model, TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True))


def test_length_is_limited_by_the_models_positions(model_folder: Path) -> None:
    model = load_base_model(str(model_folder), "float32")
    check_length(model, 64)
    check_length(torch.nn.Linear(2, 2), 10**6)
    with pytest.raises(InputError, match=r"^sequence_length: chunks have 65 tokens with <bos>, .* at most 64"):
        check_length(model, 65)
