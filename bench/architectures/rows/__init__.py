"""Every architecture that is tried, by kind."""

from __future__ import annotations

from ..architecture import Architecture
from . import audio, decoders, encoder_decoders, encoders, mixtures, state_space, vision, vision_language

ROWS: tuple[Architecture, ...] = (
    *decoders.ROWS,
    *mixtures.ROWS,
    *state_space.ROWS,
    *encoders.ROWS,
    *encoder_decoders.ROWS,
    *vision.ROWS,
    *audio.ROWS,
    *vision_language.ROWS,
)
BY_NAME = {row.name: row for row in ROWS}
# of different kinds, quick: those of `make test`
FAST = ("llama", "gpt2", "mixtral", "bert", "t5", "vit", "wav2vec2", "llava")
