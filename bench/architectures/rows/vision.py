"""Models of images: 96 classes, so that there is something to compare."""

from __future__ import annotations

from typing import Any

from ..architecture import HIDDEN, VOCABULARY, Architecture
from ..inputs import images
from .common import EYES


def _vision(name: str, model: str, config: dict[str, Any], size: int = 16, **more: Any) -> Architecture:
    return Architecture(name, "vision", model, {**config, "num_labels": VOCABULARY}, images(size=size), **more)


ROWS = (
    _vision("vit", "ViTForImageClassification", EYES),
    _vision("deit", "DeiTForImageClassification", EYES),
    _vision("dinov2", "Dinov2ForImageClassification", {**EYES, "mlp_ratio": 2}),
    _vision(
        "swin",
        "SwinForImageClassification",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": HIDDEN,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        size=32,
    ),
    _vision(
        "convnext",
        "ConvNextForImageClassification",
        {
            "image_size": 32,
            "num_stages": 2,
            "hidden_sizes": [HIDDEN, HIDDEN],
            "depths": [1, 1],
            "layer_scale_init_value": 0.5,
        },
        size=32,
    ),
    _vision(
        "segformer",
        "SegformerForImageClassification",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [HIDDEN, HIDDEN],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
        },
        size=32,
    ),
)
