"""Decoders whose tokens are routed to experts; accelerated PEFT adapts those too (`target_parameters`)."""

from __future__ import annotations

from typing import Any

from ..architecture import HIDDEN, Architecture
from ..inputs import words
from .common import GROUPED, TEXT

_EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def _mixture(name: str, model: str, config: dict[str, Any], **more: Any) -> Architecture:
    return Architecture(name, "mixture", model, config, words(), generates=True, **more)


ROWS = (
    _mixture("mixtral", "MixtralForCausalLM", {**GROUPED, "num_local_experts": 4}, parameters=_EXPERTS),
    _mixture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN},
        parameters=_EXPERTS,
    ),
    _mixture(
        "gpt_oss",
        "GptOssForCausalLM",
        {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
        parameters=_EXPERTS,
    ),
    _mixture(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        {
            **TEXT,
            "moe_intermediate_size": HIDDEN,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": HIDDEN,
            "q_lora_rank": HIDDEN,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
        },
        modules=("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        parameters=_EXPERTS,
        note="PEFT takes its gate_proj, up_proj and down_proj for the fused experts by their names",
    ),
    _mixture("olmoe", "OlmoeForCausalLM", {**TEXT, "num_experts": 4, "num_experts_per_tok": 2}, parameters=_EXPERTS),
    _mixture("granitemoe", "GraniteMoeForCausalLM", {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2}),
)
