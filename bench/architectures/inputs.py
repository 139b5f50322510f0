"""Batches for tiny models, the same for the same seed; labels among them."""

from __future__ import annotations

from typing import Any

import torch

from .architecture import VOCABULARY, Inputs

Tensor = torch.Tensor
# the last ten are free for image tokens and the like
_FIRST, _LAST = 4, VOCABULARY - 10
IMAGE, VIDEO, VISION_START, VISION_END = 95, 94, 93, 92


def _drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ids(rows: int, length: int, seed: int) -> Tensor:
    """Tokens [rows, length], none of them special."""
    return torch.randint(_FIRST, _LAST, (rows, length), generator=_drawn(seed))


def words(rows: int = 4, length: int = 12) -> Inputs:
    """Tokens that are their own labels."""

    def made(config: Any, seed: int) -> dict[str, Any]:
        tokens = ids(rows, length, seed)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone()}

    return made


def words_to_words(rows: int = 4, length: int = 12) -> Inputs:
    """Tokens in, other tokens out."""

    def made(config: Any, seed: int) -> dict[str, Any]:
        tokens = ids(rows, length, seed)
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "labels": ids(rows, length - 2, seed + 1000),
        }

    return made


def images(rows: int = 12, size: int = 16, classes: int = VOCABULARY) -> Inputs:
    """Images and their classes."""

    def made(config: Any, seed: int) -> dict[str, Any]:
        return {
            "pixel_values": torch.randn(rows, 3, size, size, generator=_drawn(seed)),
            "labels": torch.randint(0, classes, (rows,), generator=_drawn(seed + 1000)),
        }

    return made


def images_and_words(rows: int = 16, size: int = 16, length: int = 8) -> Inputs:
    """As many images as texts, for a loss that contrasts them."""

    def made(config: Any, seed: int) -> dict[str, Any]:
        tokens = ids(rows, length, seed)
        # where some read a text's meaning
        tokens[:, -1] = 2
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "pixel_values": torch.randn(rows, 3, size, size, generator=_drawn(seed + 1000)),
            "return_loss": True,
        }

    return made


def waves(rows: int = 4, length: int = 400) -> Inputs:
    """Sound and a text to it."""

    def made(config: Any, seed: int) -> dict[str, Any]:
        return {
            "input_values": torch.randn(rows, length, generator=_drawn(seed)),
            "labels": ids(rows, 5, seed + 1000),
        }

    return made


def spectra(rows: int = 4, length: int = 32, channels: int = 8) -> Inputs:
    """Spectra [rows, channels, length] and a text to each."""

    def made(config: Any, seed: int) -> dict[str, Any]:
        return {
            "input_features": torch.randn(rows, channels, length, generator=_drawn(seed)),
            "labels": ids(rows, 10, seed + 1000),
        }

    return made


def seen_words(
    image_tokens: int, rows: int = 4, size: int = 16, length: int = 8, several: bool = False, **more: Any
) -> Inputs:
    """An image in front of every text: `image_tokens` placeholders, then tokens; `more` as it is, tensors by row.
    `several`: a text may have more than one, which is a dimension of its own.
    """

    def made(config: Any, seed: int) -> dict[str, Any]:
        text = ids(rows, length, seed)
        tokens = torch.cat([torch.full((rows, image_tokens), IMAGE), text], dim=1)
        labels = tokens.clone()
        labels[:, :image_tokens] = -100
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "pixel_values": torch.randn(rows, *[1] * several, 3, size, size, generator=_drawn(seed + 1000)),
            "labels": labels,
            **{name: value.clone() if isinstance(value, Tensor) else value for name, value in more.items()},
        }

    return made
