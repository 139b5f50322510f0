"""The layers: one method, one file."""

from .adalora import AdaLoraLinear
from .adapter_layer import AdapterLayer
from .dora import DoraEmbedding, DoraLinear
from .explain import Explanation, explain
from .lora import LoraLinear
from .lora_embedding import LoraEmbedding
from .lora_parameter import LoraParameter
from .merge_report import MergeReport
from .nf4_linear import NF4Linear
from .registry import METHODS
from .vera import VeraLinear

__all__ = [
    "METHODS",
    "AdaLoraLinear",
    "AdapterLayer",
    "DoraEmbedding",
    "DoraLinear",
    "Explanation",
    "LoraEmbedding",
    "LoraLinear",
    "LoraParameter",
    "MergeReport",
    "NF4Linear",
    "VeraLinear",
    "explain",
]
