"""A model, a tokenizer and a text small enough to train in a second, and settings for them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lorafam.finetune import FinetuneConfig
from lorafam.finetune.recorder import SilentReporter

SENTENCE = "the rank of a matrix is small and its weights are frozen while two thin factors learn"


def write_model(folder: Path, *, bos: bool = True) -> Path:
    """A random two-layer Llama over bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<bos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>" if bos else None).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_text(path: Path, words: int = 800) -> Path:
    """Words in a random order; about five tokens each."""
    path.write_text(" ".join(random.Random(0).choices(SENTENCE.split(), k=words)), encoding="utf-8")
    return path


def settings(model: Path, text: Path, output: Path, **changes: Any) -> FinetuneConfig:
    """12 steps in a tenth of a second each at most."""
    values: dict[str, Any] = {
        "sequence_length": 16,
        "held_out_tokens": 64,
        "rank": 4,
        "steps": 12,
        "learning_rate": 1e-2,
        "save_every": 5,
        "evaluate_every": 4,
    }
    return FinetuneConfig(model=str(model), text=str(text), output=str(output), **{**values, **changes})


class StopAt(SilentReporter):
    """Interrupts a run right after a step, as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, record: dict[str, Any]) -> None:
        if record["step"] == self._step:
            raise KeyboardInterrupt
