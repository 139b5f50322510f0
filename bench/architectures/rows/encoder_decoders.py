"""Models from text to text."""

from __future__ import annotations

from typing import Any

from ..architecture import HIDDEN, INNER, VOCABULARY, Architecture
from ..inputs import words_to_words
from .common import SPECIAL


def _model(name: str, model: str, config: dict[str, Any], **more: Any) -> Architecture:
    return Architecture(name, "encoder-decoder", model, config, words_to_words(), generates=True, **more)


_T5 = {
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "d_kv": 16,
    "d_ff": INNER,
    "num_layers": 2,
    "num_heads": 4,
}
_BART = {
    **SPECIAL,
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}

ROWS = (
    _model("t5", "T5ForConditionalGeneration", _T5),
    _model("umt5", "UMT5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}),
    _model("bart", "BartForConditionalGeneration", _BART),
    _model("mbart", "MBartForConditionalGeneration", _BART),
    _model("pegasus", "PegasusForConditionalGeneration", _BART),
    _model("marian", "MarianMTModel", _BART),
)
