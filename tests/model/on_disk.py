"""Tiny models and PEFT's adapters for them, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tests.model.tiny import VOCABULARY, disturb, tiny_model

SMALL = "40KB"
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}},
    "dora": {"use_dora": True},
    "adalora": {},
}


def gpt2() -> GPT2LMHeadModel:
    """Two layers of Conv1D, the output head tied to the embeddings."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    return GPT2LMHeadModel(config)


def write_model(folder: Path, dtype: torch.dtype = torch.float32, model: Any = None) -> Path:
    (model or tiny_model()).to(dtype).save_pretrained(folder, max_shard_size=SMALL)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("the base model's page")
    return folder


def write_adapter(model: Path, folder: Path, method: str = "lora", **settings: Any) -> Path:
    """As PEFT saves it."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    settings = {"target_modules": ["q_proj", "v_proj", "down_proj"], "lora_alpha": 8, **settings}
    if method == "adalora":
        config: LoraConfig = AdaLoraConfig(init_r=4, target_r=2, total_step=10, **settings)
    else:
        config = LoraConfig(r=4, **{**METHODS[method], **settings})
    adapted = get_peft_model(base, config)
    disturb(adapted)
    adapted.save_pretrained(folder)
    return folder
