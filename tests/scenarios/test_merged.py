"""A merged model is an ordinary one: what it writes, transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import lorafam
from tests.model.tiny import disturb, tiny_model, tokens


def gpt2() -> Any:
    """Its square weights would be loaded the wrong way round in silence."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=64, n_layer=1, n_head=2, n_positions=32)).eval()


# in a 4-bit model every layer must be merged, else one of lorafam's is left
@pytest.mark.parametrize(
    ("into", "settings"),
    [(into, {"target_modules": ["attn.c_proj"]}) for into in ("same", "bf16", "fp32")]
    + [(into, {"quantize": "nf4"}) for into in ("bf16", "fp32")],
)
def test_conv1d_stays_conv1d(into: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = lorafam.adapt(gpt2(), lorafam.AdapterConfig(r=4, **settings))
    disturb(model)
    lorafam.merge_and_unload(model, into=into)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=model.dtype).eval()
    torch.testing.assert_close(again(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("model", [tiny_model, gpt2])
@pytest.mark.parametrize("into", ["same", "nf4"])
def test_layers_that_transformers_does_not_know_are_not_saved(model: Any, into: str, tmp_path: Path) -> None:
    quantize = "nf4" if into == "same" else None
    merged = lorafam.adapt(model(), lorafam.AdapterConfig(r=4, quantize=quantize))
    lorafam.merge_and_unload(merged, into=into)
    with pytest.raises(ValueError, match="is a 4-bit layer of lorafam's, which transformers would load as a new one"):
        merged.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
