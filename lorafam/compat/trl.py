"""Other forwards that TRL's trainers and Liger's kernels put into a model: they multiply by the output head's weight
themselves, in tiles, and never call the head. Never imports them. Seen in TRL 1.16.0.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

# TRL's forward is the model's own unless it is called with this
_FUSED = "fused_lm_head"


def skips_head(model: Any, head: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of the model with `kwargs` multiplies by the weight of its output head, called `head`, itself."""
    forward = getattr(model.forward, "__func__", model.forward)
    code = getattr(forward, "__code__", None)
    module = sys.modules.get(type(model).__module__)
    if code is None or code.co_filename == getattr(module, "__file__", None):
        # the class' own; what that reads is known from its source
        return False
    default = (forward.__kwdefaults__ or {}).get(_FUSED, True)
    reads = "weight" in code.co_names and not {head, "get_output_embeddings"}.isdisjoint(code.co_names)
    return reads and bool(kwargs.get(_FUSED, default))
