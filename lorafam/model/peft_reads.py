"""What PEFT makes of a file's names where transformers 5 stores a mixture's experts fused."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable

from torch import nn

from ..compat.transformers import experts_of


def tell_of_experts(model: nn.Module, paths: Iterable[str]) -> None:
    """Warns of adapted layers that PEFT can't read back into this model: it takes their names for the experts'."""
    if not any(experts_of(module) for module in model.modules()) or importlib.util.find_spec("peft") is None:
        return
    from ..compat.peft import taken_for_experts

    taken = taken_for_experts(model, list(paths))
    if taken:
        warnings.warn(
            f"save_adapter: PEFT takes {taken[0]!r} ({len(taken)} such) for fused experts of this architecture by its "
            "name and adapts those instead: lorafam alone reads this file as it is; for PEFT leave such layers out of "
            "target_modules",
            stacklevel=3,
        )
