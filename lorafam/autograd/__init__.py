"""The autograd Functions: what is saved for the backward, and which op is called."""

from .directions import forward as adapted_forward
from .dora_input_dropout import DoraInputDropout
from .dora_linear import DoraLinear
from .frozen_linear import FrozenLinear
from .grouped_lora_linear import Factors, GroupedLoraLinear, grouped_forward
from .lora_by_row import LoraByRow
from .lora_linear import LoraLinear
from .low_rank import LowRank
from .orthogonality import Orthogonality
from .plain import applied
from .row_norm import RowNorm
from .scaled_factor import scaled

__all__ = [
    "DoraInputDropout",
    "DoraLinear",
    "Factors",
    "FrozenLinear",
    "GroupedLoraLinear",
    "LoraByRow",
    "LoraLinear",
    "LowRank",
    "Orthogonality",
    "RowNorm",
    "adapted_forward",
    "applied",
    "grouped_forward",
    "scaled",
]
