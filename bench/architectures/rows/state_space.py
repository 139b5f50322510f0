"""Decoders with a state instead of, or beside, attention."""

from __future__ import annotations

from typing import Any

from ..architecture import HIDDEN, INNER, VOCABULARY, Architecture
from ..inputs import words
from .common import SPECIAL, TEXT


def _model(name: str, model: str, config: dict[str, Any], **more: Any) -> Architecture:
    return Architecture(name, "state space", model, config, words(), generates=True, **more)


_READ = "its other projections' weights are read by fused GPU kernels, where PEFT's adapters would be skipped"
_STATE = {**SPECIAL, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2}

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")

ROWS = (
    _model(
        "mamba",
        "MambaForCausalLM",
        {**_STATE, "state_size": 8, "time_step_rank": HIDDEN},
        modules=("in_proj",),
        dense=("dt_proj",),
        note=_READ,
    ),
    _model(
        "mamba2",
        "Mamba2ForCausalLM",
        {**_STATE, "state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
        modules=("in_proj",),
        note=_READ,
    ),
    _model(
        "falcon_mamba",
        "FalconMambaForCausalLM",
        {**_STATE, "state_size": 8, "time_step_rank": HIDDEN},
        modules=("in_proj",),
        note=_READ,
    ),
    _model(
        "rwkv",
        "RwkvForCausalLM",
        {**_STATE, "context_length": 64, "intermediate_size": INNER, "rescale_every": 0},
        beams=False,
        note="rescale_every=0: in evaluation it would divide the bases' weights, and no adapter",
    ),
    _model(
        "jamba",
        "JambaForCausalLM",
        {
            **TEXT,
            "num_key_value_heads": 2,
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": HIDDEN,
            "use_mamba_kernels": False,
        },
        modules=("in_proj", "x_proj", "out_proj", *_ATTENTION, "gate_proj", "up_proj", "down_proj"),
        note="dt_proj's weight is read, PEFT's adapter skipped",
    ),
    _model(
        "zamba2",
        "Zamba2ForCausalLM",
        {
            **TEXT,
            "layers_block_type": ["linear_attention", "hybrid"],
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "chunk_size": 8,
            "use_shared_attention_adapter": False,
        },
        modules=("in_proj", *_ATTENTION, "gate_up_proj", "down_proj", "linear"),
        note=_READ,
    ),
    _model(
        "recurrent_gemma",
        "RecurrentGemmaForCausalLM",
        {**TEXT, "num_key_value_heads": 2, "num_hidden_layers": 3, "lru_width": HIDDEN, "attention_window_size": 16},
    ),
)
