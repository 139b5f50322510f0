"""Models of sound."""

from __future__ import annotations

from typing import Any

from ..architecture import HIDDEN, INNER, VOCABULARY, Architecture, Refusal
from ..inputs import spectra, waves
from .common import SIZES, SPECIAL

_WAVES = {
    **SIZES,
    **SPECIAL,
    "vocab_size": VOCABULARY,
    "conv_dim": (HIDDEN, HIDDEN),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "ctc_zero_infinity": True,
}
_WHISPER = {
    **SPECIAL,
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "decoder_start_token_id": 3,
}


# PEFT asks a model for its input embeddings when it saves
_NO_EMBEDDINGS = Refusal(
    "get_input_embeddings",
    "PEFT's save_pretrained fails, accelerated or not: the model has no input embeddings",
    ("accelerate", "accelerate 4-bit"),
    ("Trainer", "save, load"),
)


def _audio(name: str, model: str, config: dict[str, Any], **more: Any) -> Architecture:
    return Architecture(name, "audio", model, config, waves(), refused=(_NO_EMBEDDINGS,), **more)


ROWS = (
    _audio("wav2vec2", "Wav2Vec2ForCTC", _WAVES),
    _audio("hubert", "HubertForCTC", _WAVES),
    _audio(
        "wavlm",
        "WavLMForCTC",
        _WAVES,
        modules=("projection", "intermediate_dense", "output_dense"),
        dense=("q_proj", "k_proj", "v_proj", "out_proj", "gru_rel_pos_linear"),
        note="its attention computes with the weights itself: PEFT trains adapters there without a gradient",
    ),
    Architecture(
        "whisper",
        "audio",
        "WhisperForConditionalGeneration",
        {
            **_WHISPER,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 32,
            "begin_suppress_tokens": None,
        },
        spectra(),
        generates=True,
    ),
)
