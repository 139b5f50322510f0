"""What is done to a whole model: adapting it, merging it, saving and loading its adapters."""

from .adapt import adapt, adapter_layers
from .checkpoint import load_adapter, save_adapter
from .merge import merge_and_unload
from .model_merge_report import ModelMergeReport
from .probes import probe_inputs

__all__ = [
    "ModelMergeReport",
    "adapt",
    "adapter_layers",
    "load_adapter",
    "merge_and_unload",
    "probe_inputs",
    "save_adapter",
]
