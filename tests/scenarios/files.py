"""Small models whose biases, tables and heads differ, and the same adapter through PEFT's files and lorafam's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.model.tiny import VOCABULARY, disturb, tokens

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def _with_biases(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def llama(tied: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**_SIZES, tie_word_embeddings=tied))


def qwen() -> nn.Module:
    torch.manual_seed(0)
    return _with_biases(Qwen2ForCausalLM(Qwen2Config(**_SIZES)))


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    return _with_biases(GPT2LMHeadModel(config))


BASES: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "tied": lambda: llama(tied=True),
    "qwen": qwen,
    "gpt2": gpt2,
}
QV = ["q_proj", "v_proj"]
# name → base, settings of PEFT's
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "all biases": ("qwen", {"target_modules": QV, "bias": "all"}),
    "biases of adapted layers": ("qwen", {"target_modules": QV, "bias": "lora_only"}),
    "all biases, Conv1D": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "all biases and the adapter's": ("gpt2", {"target_modules": ["c_attn"], "bias": "all", "lora_bias": True}),
    "all biases, DoRA": ("qwen", {"target_modules": QV, "bias": "all", "use_dora": True}),
    "biases of a module saved whole": ("qwen", {"target_modules": QV, "bias": "all", "modules_to_save": ["k_proj"]}),
    "tokens": ("llama", {"target_modules": QV, "trainable_token_indices": [1, 5, 7]}),
    "tokens by table": ("llama", {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [5, 1]}}),
    "tokens, tied head": ("tied", {"target_modules": QV, "trainable_token_indices": [1, 5, 7]}),
    "tokens of both tied": (
        "tied",
        {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [1, 5]}},
    ),
    "tokens of a head": (
        "llama",
        {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [2]}},
    ),
    "tokens, Conv1D": ("gpt2", {"target_modules": ["c_attn"], "trainable_token_indices": [1, 5]}),
    "tokens and a head": (
        "llama",
        {"target_modules": QV, "trainable_token_indices": [3], "modules_to_save": ["lm_head"]},
    ),
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied embeddings": ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied head": ("tied", {"target_modules": ["lm_head", "q_proj"]}),
    "tied both": ("tied", {"target_modules": ["lm_head", "embed_tokens"]}),
    "both": ("llama", {"target_modules": ["lm_head", "embed_tokens"]}),
    "tied embeddings, Conv1D": ("gpt2", {"target_modules": ["wte", "c_attn"]}),
    "tied head saved whole": ("tied", {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "tied embeddings saved whole": ("tied", {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    "adapters that stay tied": ("tied", {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    "copies that stay tied": (
        "tied",
        {"target_modules": QV, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "mica": ("llama", {"target_modules": QV, "init_lora_weights": "mica"}),
    "velora": ("llama", {"target_modules": QV, "velora_config": {}}),
    "no targets, known model": ("qwen", {}),
}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(tokens()).logits


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def peft_file(folder: Path, base: nn.Module, **settings: Any) -> None:
    """As PEFT saves it after training."""
    theirs = get_peft_model(base, LoraConfig(**{"r": 4, "init_lora_weights": False, **settings}))
    disturb(theirs)
    theirs.save_pretrained(folder)


def by_peft(folder: Path, base: nn.Module) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(base, folder))
