"""PEFT's tuners (LoraModel, AdaLoraModel, VeraModel), which make a model's layers: one of an accelerated model
accelerates those that it adds later. Made one, as layers are, by changing its class.
"""

from __future__ import annotations

from typing import Any

from peft import AdaLoraModel, LoraModel, VeraModel
from torch import nn


class TunerState:
    """What a tuner's class was."""

    def __init__(self, original: type) -> None:
        self.original = original

    def swap_back(self, tuner: nn.Module) -> None:
        """Makes the tuner what it was."""
        del tuner._lorafam
        tuner.__class__ = self.original


class FastTuner:
    """Before a tuner of PEFT's."""

    def inject_adapter(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        from .accelerate import accelerate

        super().inject_adapter(model, *args, **kwargs)  # type: ignore[misc]
        accelerate(model)


class FastLoraModel(FastTuner, LoraModel):
    __doc__ = LoraModel.__doc__


class FastAdaLoraModel(FastTuner, AdaLoraModel):
    __doc__ = AdaLoraModel.__doc__


class FastVeraModel(FastTuner, VeraModel):
    __doc__ = VeraModel.__doc__


_FAST: dict[type, type] = {LoraModel: FastLoraModel, AdaLoraModel: FastAdaLoraModel, VeraModel: FastVeraModel}
for _original, _fast in _FAST.items():
    _fast.__name__ = _original.__name__


def swap_tuners(module: nn.Module) -> None:
    """Makes every tuner in `module` one that accelerates what it adds."""
    for child in module.modules():
        if type(child) in _FAST:
            child._lorafam = TunerState(type(child))  # type: ignore[assignment]
            child.__class__ = _FAST[type(child)]
