"""What is done to a whole model: adapting it, merging it, saving and loading its adapters."""

from .adapt import adapt, adapter_layers
from .checkpoint import load_adapter, save_adapter
from .merge import merge_and_unload

__all__ = ["adapt", "adapter_layers", "load_adapter", "merge_and_unload", "save_adapter"]
