"""What is done to a whole model: adapting it, merging it, saving and loading its adapters."""

from .adapt import adapt, adapter_layers
from .adapters import adapters_by_row, add_adapter, delete_adapter, disabled, set_adapter
from .checkpoint import load_adapter, save_adapter
from .combine import combine_adapters
from .merge import merge_and_unload
from .merge_files import MergedFiles, merge_files
from .model_merge_report import ModelMergeReport
from .probes import probe_inputs

__all__ = [
    "MergedFiles",
    "ModelMergeReport",
    "adapt",
    "adapter_layers",
    "adapters_by_row",
    "add_adapter",
    "combine_adapters",
    "delete_adapter",
    "disabled",
    "load_adapter",
    "merge_and_unload",
    "merge_files",
    "probe_inputs",
    "save_adapter",
    "set_adapter",
]
