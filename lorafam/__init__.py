"""lorafam: LoRA, QLoRA, AdaLoRA and DoRA, fast and checked.

Importing it compiles nothing and needs torch, numpy and safetensors alone; Numba, Triton, bitsandbytes and the rest are
imported when used.
"""

from . import backends as backends
from . import functional, reference
from .config import AdapterConfig
from .interop import AccelerateReport, accelerate, accelerated, decelerate
from .methods import AdaLoraLinear, DoraLinear, Explanation, LoraLinear, MergeReport, NF4Linear, VeraLinear, explain
from .model import (
    ModelMergeReport,
    adapt,
    adapters_by_row,
    add_adapter,
    combine_adapters,
    delete_adapter,
    disabled,
    load_adapter,
    merge_and_unload,
    merge_files,
    probe_inputs,
    save_adapter,
    set_adapter,
)
from .optim.lora_plus import lora_plus_groups
from .optim.paged_adamw import PagedAdamW
from .optim.rank_allocator import RankAllocator
from .weights import NF4Weight, quantize_nf4

__version__ = "0.1.0"

__all__ = [
    "AccelerateReport",
    "AdaLoraCallback",
    "AdaLoraLinear",
    "AdapterConfig",
    "DoraLinear",
    "Explanation",
    "LoraLinear",
    "MergeReport",
    "ModelMergeReport",
    "NF4Linear",
    "NF4Weight",
    "PagedAdamW",
    "RankAllocator",
    "VeraLinear",
    "accelerate",
    "accelerated",
    "adapt",
    "adapters_by_row",
    "add_adapter",
    "combine_adapters",
    "decelerate",
    "delete_adapter",
    "disabled",
    "explain",
    "functional",
    "load_adapter",
    "lora_plus_groups",
    "merge_and_unload",
    "merge_files",
    "probe_inputs",
    "quantize_nf4",
    "reference",
    "save_adapter",
    "set_adapter",
]


def __getattr__(name: str) -> object:
    if name == "AdaLoraCallback":  # needs transformers
        from .interop.callbacks import AdaLoraCallback

        return AdaLoraCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
