"""transformers' Trainer, whose private steps `lorafam.finetune.trainer` overrides. All were seen in 5.0.0, 5.17.0 and
5.24.0; an override of a step that a version doesn't have would never be called, so the import fails there.
"""

from __future__ import annotations

import transformers
from transformers import Trainer

__all__ = ["Trainer"]

_STEPS = ("_get_output_dir", "_get_train_sampler", "_load_from_checkpoint", "_save", "_save_checkpoint")


def check(trainer: type) -> None:
    """Raises ImportError where one of the steps isn't there."""
    missing = [step for step in _STEPS if not hasattr(trainer, step)]
    if missing:
        raise ImportError(f"transformers {transformers.__version__}: its Trainer has no {', '.join(missing)}")


check(Trainer)
