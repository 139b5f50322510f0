"""The application: `finetune` takes a model, a text and settings all the way to an adapter.

What needs transformers is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import DivergedError as DivergedError
    from .errors import InputError as InputError
    from .loop import finetune as finetune
    from .result import FinetuneResult as FinetuneResult
    from .settings import FinetuneConfig as FinetuneConfig

_HOME = {
    "FinetuneConfig": "settings",
    "FinetuneResult": "result",
    "InputError": "errors",
    "DivergedError": "errors",
    "finetune": "loop",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
