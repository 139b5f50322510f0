"""The autograd Functions: what is saved for the backward, and which op is called."""

from .directions import forward as adapted_forward
from .dora_input_dropout import DoraInputDropoutFunction
from .dora_linear import DoraLinearFunction
from .frozen_linear import FrozenLinearFunction
from .gated_activation import gated_activation
from .grouped_lora_linear import GroupedLoraLinearFunction, group, grouped_forward
from .linear_cross_entropy import LinearCrossEntropyFunction
from .lora_by_row import LoraByRowFunction
from .lora_linear import LoraLinearFunction
from .low_rank import LowRankFunction
from .orthogonality import OrthogonalityFunction
from .plain import applied
from .row_norm import RowNormFunction
from .scaled_factor import scaled

__all__ = [
    "DoraInputDropoutFunction",
    "DoraLinearFunction",
    "FrozenLinearFunction",
    "GroupedLoraLinearFunction",
    "LinearCrossEntropyFunction",
    "LoraByRowFunction",
    "LoraLinearFunction",
    "LowRankFunction",
    "OrthogonalityFunction",
    "RowNormFunction",
    "adapted_forward",
    "applied",
    "gated_activation",
    "group",
    "grouped_forward",
    "scaled",
]
