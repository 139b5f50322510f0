"""Adapters of experts that were layers of their own before transformers 5 and are parts of one parameter now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import MixtralConfig, MixtralForCausalLM

import lorafam
from tests.scenarios.files import close, logits

EXPERTS, HIDDEN, INNER, RANK, ALPHA = 4, 32, 48, 4, 8
SIZES = {"w1": (INNER, HIDDEN), "w2": (HIDDEN, INNER), "w3": (INNER, HIDDEN)}


def mixtral() -> Any:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=50, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=EXPERTS, max_position_embeddings=64,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def older_file(folder: Path, names: list[str]) -> Any:
    """A file of PEFT's under transformers 4; returns the model with its adapter merged."""
    model = mixtral()
    experts = model.model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for expert in range(EXPERTS):
        for name in names:
            rows, columns = SIZES[name]
            A, B = (torch.randn(*shape, generator=generator) * 0.3 for shape in ((RANK, columns), (rows, RANK)))
            path = f"base_model.model.model.layers.0.block_sparse_moe.experts.{expert}.{name}"
            tensors |= {f"{path}.lora_A.weight": A, f"{path}.lora_B.weight": B}
            whole = experts.down_proj if name == "w2" else experts.gate_up_proj
            part = {"w1": slice(0, INNER), "w3": slice(INNER, None), "w2": slice(None)}[name]
            whole.data[expert, part] += ALPHA / RANK * B @ A
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": names, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return model


@pytest.mark.parametrize("names", [["w1", "w2", "w3"], ["w1", "w3"], ["w2"]])
def test_they_are_refused_by_name(names: list[str], tmp_path: Path) -> None:
    older_file(tmp_path / "adapter", names)
    mixtral().save_pretrained(tmp_path / "model")
    told = rf"experts\.0\.{names[0]}', a layer that is a part of 'model\.layers\.0\.mlp\.experts\."
    before = logits(model := mixtral())
    with pytest.raises(ValueError, match=told):
        lorafam.load_adapter(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match=told):
        lorafam.merge_files(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")
    assert torch.equal(logits(model), before)
    assert not (tmp_path / "merged").exists()


def test_what_peft_converted_is_read(tmp_path: Path) -> None:
    want = logits(older_file(tmp_path / "adapter", ["w1", "w2", "w3"]))
    theirs = PeftModel.from_pretrained(mixtral(), tmp_path / "adapter")
    close(logits(theirs), want)
    theirs.save_pretrained(tmp_path / "converted")
    close(logits(lorafam.load_adapter(mixtral(), tmp_path / "converted")), want)


def test_peft_drops_a_gate_that_is_adapted_without_its_down_projection(tmp_path: Path) -> None:
    """Why the refusal speaks of all of an expert's layers; when this fails, it needn't any more."""
    want = logits(older_file(tmp_path / "adapter", ["w1", "w3"]))
    found = logits(PeftModel.from_pretrained(mixtral(), tmp_path / "adapter"))
    assert (found - want).norm() > 1e-2 * want.norm()
