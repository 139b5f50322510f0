"""Every PEFT layer accelerated as it is made, and counted, so that tests can't pass because nothing was."""

from __future__ import annotations

import functools
from typing import Any

import lorafam


class Counts:
    """How many layers were accelerated, and how many forwards took a path of lorafam's instead of PEFT's code."""

    def __init__(self) -> None:
        self.layers: int = 0
        self.forwards: int = 0

    def clear(self) -> None:
        self.layers = self.forwards = 0


def accelerate_everything(counts: Counts) -> None:
    """Accelerates what any tuner of PEFT's injects from here on."""
    from peft.tuners.tuners_utils import BaseTuner

    from lorafam.interop import fast_layers
    from lorafam.interop.shared_inputs import SharedInput

    inject, swap = BaseTuner.inject_adapter, fast_layers.swap

    @functools.wraps(inject)
    def inject_and_accelerate(tuner: Any, *args: Any, **kwargs: Any) -> None:
        inject(tuner, *args, **kwargs)
        lorafam.accelerate(tuner)

    @functools.wraps(swap)
    def counted_swap(layer: Any) -> None:
        swap(layer)
        counts.layers += 1

    BaseTuner.inject_adapter = inject_and_accelerate
    fast_layers.swap = counted_swap
    for layer in (fast_layers.FastLayer, fast_layers.FastAdaLora, fast_layers.FastVera, fast_layers.FastEmbedding):
        layer.lorafam_forward = _counted(layer.lorafam_forward, counts)  # type: ignore[method-assign]
    # layers whose outputs are computed together: the first, and the others when they are called
    for name in ("compute", "kept_for"):
        setattr(SharedInput, name, _counted(getattr(SharedInput, name), counts))


def _counted(forward: Any, counts: Counts) -> Any:
    @functools.wraps(forward)
    def counted(*args: Any) -> Any:
        y = forward(*args)
        counts.forwards += y is not None
        return y

    return counted
