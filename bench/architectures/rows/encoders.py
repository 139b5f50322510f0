"""Models of whole texts."""

from __future__ import annotations

from typing import Any

from ..architecture import HIDDEN, INNER, VOCABULARY, Architecture
from ..inputs import words
from .common import SPECIAL, TEXT


def _encoder(name: str, model: str, config: dict[str, Any], **more: Any) -> Architecture:
    return Architecture(name, "encoder", model, config, words(), **more)


ROWS = (
    _encoder("bert", "BertForMaskedLM", TEXT),
    _encoder("roberta", "RobertaForMaskedLM", TEXT),
    _encoder("albert", "AlbertForMaskedLM", {**TEXT, "embedding_size": HIDDEN}, note="its layers are one layer"),
    _encoder(
        "deberta-v2", "DebertaV2ForMaskedLM", {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
    ),
    _encoder("electra", "ElectraForMaskedLM", {**TEXT, "embedding_size": HIDDEN}),
    _encoder(
        "modernbert", "ModernBertForMaskedLM", {**TEXT, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}
    ),
    _encoder(
        "distilbert",
        "DistilBertForMaskedLM",
        {
            **SPECIAL,
            "vocab_size": VOCABULARY,
            "dim": HIDDEN,
            "hidden_dim": INNER,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
)
