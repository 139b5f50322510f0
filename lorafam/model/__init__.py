"""What is done to a whole model: adapting it, merging it, saving and loading its adapters."""

from .adapt import adapt, adapter_layers
from .checkpoint import load_adapter, save_adapter
from .merge import merge_and_unload
from .merge_files import MergedFiles, merge_files
from .model_merge_report import ModelMergeReport
from .probes import probe_inputs

__all__ = [
    "MergedFiles",
    "ModelMergeReport",
    "adapt",
    "adapter_layers",
    "load_adapter",
    "merge_and_unload",
    "merge_files",
    "probe_inputs",
    "save_adapter",
]
