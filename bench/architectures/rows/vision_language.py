"""Models of images and texts."""

from __future__ import annotations

from typing import Any

import torch

from ..architecture import HIDDEN, Architecture
from ..inputs import IMAGE, VIDEO, VISION_END, VISION_START, ids, images_and_words, seen_words
from .common import EYES, GROUPED, SPECIAL, TEXT

_CONTRAST = ("text_embeds", "image_embeds")


def _contrastive(name: str, model: str, config: dict[str, Any]) -> Architecture:
    return Architecture(name, "vision-language", model, config, images_and_words(), _CONTRAST)


def _reader(name: str, model: str, config: dict[str, Any], inputs: Any, **more: Any) -> Architecture:
    return Architecture(name, "vision-language", model, config, inputs, generates=True, **more)


def _patches(channels: int, patch: int = 8, rows: int = 4) -> Any:
    """Qwen's: an image is 4 x 4 patches in two times, in one line with all others; 4 of them are one token."""

    def made(config: Any, seed: int) -> dict[str, Any]:
        text = ids(rows, 8, seed)
        image = torch.full((rows, 4), IMAGE)
        around = torch.full((rows, 1), VISION_START), image, torch.full((rows, 1), VISION_END)
        tokens = torch.cat([*around, text], dim=1)
        labels = tokens.clone()
        labels[:, :6] = -100
        drawn = torch.randn(
            rows * 16, channels * 2 * patch * patch, generator=torch.Generator().manual_seed(seed + 1000)
        )
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "mm_token_type_ids": (tokens == IMAGE).int(),
            "pixel_values": drawn,
            "image_grid_thw": torch.tensor([[1, 4, 4]] * rows),
            "labels": labels,
        }

    return made


_QWEN = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
_QWEN_TEXT = {
    **TEXT,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
}

ROWS = (
    _contrastive("clip", "CLIPModel", {"text_config": TEXT, "vision_config": EYES, "projection_dim": HIDDEN}),
    Architecture(
        "siglip",
        "vision-language",
        "SiglipModel",
        {"text_config": {**TEXT, "max_position_embeddings": 8, "projection_size": HIDDEN}, "vision_config": EYES},
        images_and_words(),
        _CONTRAST,
        modules=("q_proj", "k_proj", "v_proj", "fc1", "fc2"),
        note="out_proj of nn.MultiheadAttention is never called: PEFT's adapter there is skipped",
    ),
    _reader(
        "llava",
        "LlavaForConditionalGeneration",
        {
            "text_config": {**GROUPED, "model_type": "llama"},
            "vision_config": {**EYES, "model_type": "clip_vision_model"},
            "image_token_index": IMAGE,
            "image_seq_length": 4,
        },
        seen_words(4),
    ),
    _reader(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        {
            **_QWEN,
            "text_config": _QWEN_TEXT,
            "vision_config": {
                "depth": 2,
                "embed_dim": HIDDEN,
                "hidden_size": HIDDEN,
                "num_heads": 2,
                "mlp_ratio": 2,
                "patch_size": 8,
            },
        },
        _patches(3),
    ),
    _reader(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        {
            **_QWEN,
            "text_config": _QWEN_TEXT,
            "vision_config": {
                "depth": 2,
                "hidden_size": HIDDEN,
                "out_hidden_size": HIDDEN,
                "intermediate_size": HIDDEN,
                "num_heads": 2,
                "patch_size": 8,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
        },
        _patches(3),
    ),
    _reader(
        "paligemma",
        "PaliGemmaForConditionalGeneration",
        {
            "text_config": {**GROUPED, "model_type": "gemma"},
            "vision_config": {
                **EYES,
                "model_type": "siglip_vision_model",
                "projection_dim": HIDDEN,
                "vision_use_head": False,
            },
            "image_token_index": IMAGE,
            "projection_dim": HIDDEN,
            "hidden_size": HIDDEN,
            **SPECIAL,
        },
        seen_words(4, token_type_ids=torch.tensor([[0] * 4 + [1] * 8] * 4)),
    ),
    _reader(
        "gemma3",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**GROUPED, "sliding_window": 8},
            "vision_config": {**EYES, "model_type": "siglip_vision_model", "vision_use_head": False},
            "image_token_index": IMAGE,
            "boi_token_index": VISION_START,
            "eoi_token_index": VISION_END,
            "mm_tokens_per_image": 4,
        },
        seen_words(4, token_type_ids=torch.tensor([[1] * 4 + [0] * 8] * 4)),
    ),
    _reader(
        "idefics3",
        "Idefics3ForConditionalGeneration",
        {
            "text_config": {**GROUPED, "model_type": "llama"},
            "vision_config": {**EYES, "image_size": 32},
            "image_token_id": IMAGE,
            "scale_factor": 2,
            **SPECIAL,
        },
        seen_words(4, size=32, several=True),
    ),
    _reader(
        "blip",
        "BlipForConditionalGeneration",
        {
            "text_config": {**TEXT, "encoder_hidden_size": HIDDEN, "projection_dim": HIDDEN, "sep_token_id": 2},
            "vision_config": {**EYES, "initializer_range": 0.02},
            "projection_dim": HIDDEN,
            "image_text_hidden_size": HIDDEN,
        },
        seen_words(0),
        modules=("qkv", "projection", "fc1", "fc2", "query", "key", "value", "dense"),
        note="its decoder is tied to the table and not told as the output head: PEFT's merge changes both",
    ),
)
