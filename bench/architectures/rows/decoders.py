"""Models that go on from a text."""

from __future__ import annotations

from typing import Any

from ..architecture import HIDDEN, INNER, VOCABULARY, Architecture
from ..inputs import words
from .common import GROUPED, SPECIAL, TEXT


def _decoder(name: str, model: str, config: dict[str, Any], **more: Any) -> Architecture:
    return Architecture(name, "decoder", model, config, words(), generates=True, **more)


_GPT = {**SPECIAL, "vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "n_positions": 64}

ROWS = (
    _decoder("llama", "LlamaForCausalLM", GROUPED),
    _decoder("mistral", "MistralForCausalLM", {**GROUPED, "sliding_window": 8}),
    _decoder("qwen2", "Qwen2ForCausalLM", {**TEXT, "num_key_value_heads": 2}),
    _decoder("qwen3", "Qwen3ForCausalLM", GROUPED),
    _decoder("gemma2", "Gemma2ForCausalLM", {**GROUPED, "sliding_window": 8}),
    _decoder("gemma3_text", "Gemma3ForCausalLM", {**GROUPED, "sliding_window": 8}),
    _decoder("phi3", "Phi3ForCausalLM", {**TEXT, "num_key_value_heads": 2}),
    _decoder("gpt2", "GPT2LMHeadModel", _GPT),
    _decoder("gpt_neox", "GPTNeoXForCausalLM", TEXT),
    _decoder("gptj", "GPTJForCausalLM", {**_GPT, "rotary_dim": 8}),
    _decoder("opt", "OPTForCausalLM", {**TEXT, "ffn_dim": INNER, "word_embed_proj_dim": HIDDEN}),
    _decoder(
        "bloom",
        "BloomForCausalLM",
        {**SPECIAL, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": 2, "n_head": 4},
    ),
    _decoder("falcon", "FalconForCausalLM", {**TEXT, "new_decoder_architecture": False}),
    _decoder(
        "mpt",
        "MptForCausalLM",
        {**SPECIAL, "vocab_size": VOCABULARY, "d_model": HIDDEN, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    ),
    _decoder("starcoder2", "Starcoder2ForCausalLM", {**TEXT, "num_key_value_heads": 2}),
    _decoder("olmo", "OlmoForCausalLM", {**TEXT, "clip_qkv": 0.3}, note="clip_qkv: q, k, v are clamped in place"),
    _decoder("cohere", "CohereForCausalLM", {**TEXT, "num_key_value_heads": 2}),
    _decoder("stablelm", "StableLmForCausalLM", {**TEXT, "num_key_value_heads": 2}),
    _decoder("granite", "GraniteForCausalLM", {**TEXT, "num_key_value_heads": 2}),
    _decoder(
        "xlnet",
        "XLNetLMHeadModel",
        {**SPECIAL, "vocab_size": VOCABULARY, "d_model": HIDDEN, "n_layer": 2, "n_head": 4, "d_inner": INNER},
    ),
)
