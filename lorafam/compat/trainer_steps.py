"""Steps of transformers' Trainer that are done otherwise for some models, in every Trainer of the process: it asks by
class whether a model has adapters, and knows PEFT's alone. Never imports transformers: the steps are replaced when its
Trainer is imported.

Seen in 5.0.0, 5.17.0 and 5.24.0: `_save(output_dir, state_dict)`, `_load_from_checkpoint(resume_from_checkpoint,
model)`, `_load_best_model()`.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# what Trainer writes a state dict into
SAFE_WEIGHTS = "model.safetensors"
_MODULE = "transformers.trainer"
Step = Callable[..., Any]


def around_steps(steps: Mapping[str, Step]) -> None:
    """Makes Trainer call `steps[name](trainer, original, *args)` for its step `name`, now or once it is imported.

    Raises ImportError where this version's Trainer has no such step.
    """
    if _MODULE in sys.modules:
        _wrap(sys.modules[_MODULE], steps)
    else:
        sys.meta_path.insert(0, _Awaiting(steps))


def is_sharded_by_others(trainer: Any) -> bool:
    """Whether FSDP or DeepSpeed writes and reads the checkpoints."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


class _Awaiting(MetaPathFinder):
    """Finds nothing itself: has the steps replaced when others have found and run Trainer's module."""

    def __init__(self, steps: Mapping[str, Step]) -> None:
        self._steps = steps

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_wrap(module: ModuleType) -> None:
            run(module)
            _wrap(module, self._steps)

        spec.loader.exec_module = run_and_wrap  # type: ignore[method-assign]
        return spec


def _wrap(module: ModuleType, steps: Mapping[str, Step]) -> None:
    trainer: Any = module.Trainer
    missing = [name for name in steps if not hasattr(trainer, name)]
    if missing:
        version = sys.modules["transformers"].__version__
        raise ImportError(f"transformers {version}: its Trainer has no {', '.join(missing)}")
    for name, step in steps.items():
        setattr(trainer, name, _around(getattr(trainer, name), step))


def _around(original: Step, step: Step) -> Step:
    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return step(self, functools.partial(original, self), *args, **kwargs)

    return call
