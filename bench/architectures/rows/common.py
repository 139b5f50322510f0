"""Sizes that most configurations call by the same names: all inputs of linear layers are of a multiple of 64, since
bitsandbytes decodes others wrongly on a CPU.
"""

from __future__ import annotations

from typing import Any

from ..architecture import HIDDEN, INNER, VOCABULARY

SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT: dict[str, Any] = {**SIZES, **SPECIAL, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
# fewer heads of keys and values than of queries
GROUPED: dict[str, Any] = {**TEXT, "num_key_value_heads": 2, "head_dim": 16}
EYES: dict[str, Any] = {**SIZES, "image_size": 16, "patch_size": 8}
