"""Parameters that FSDP2 shards: DTensors outside their block's forward and backward, whole there, in memory that is
freed and filled anew without a new version.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from ..compat.torch import hooks_of_fsdp


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor; never imports them."""
    library = sys.modules.get("torch.distributed.tensor")
    return library is not None and isinstance(tensor, library.DTensor)


def is_unit(module: nn.Module) -> bool:
    """Whether FSDP2 shards the module by itself, and has changed its class for that."""
    library = sys.modules.get("torch.distributed.fsdp")
    return library is not None and isinstance(module, library.FSDPModule)


def is_gathered(layer: nn.Module) -> bool:
    """Whether FSDP2 fills a parameter of the layer before each forward: what was formed of it once may then be of other
    values, a checkpoint is loaded into the shards.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return any(map(hooks_of_fsdp, layer.modules()))
