"""The layers: one method, one file."""

from .adalora import AdaLoraLinear
from .adapter_layer import AdapterLayer
from .dora import DoraLinear
from .explain import Explanation, explain
from .lora import LoraLinear
from .lora_embedding import LoraEmbedding
from .merge_report import MergeReport
from .nf4_linear import NF4Linear
from .registry import METHODS

__all__ = [
    "METHODS",
    "AdaLoraLinear",
    "AdapterLayer",
    "DoraLinear",
    "Explanation",
    "LoraEmbedding",
    "LoraLinear",
    "MergeReport",
    "NF4Linear",
    "explain",
]
