"""Seconds that a model spends in its adapted layers, forward and backward, by hooks on each.

The vocabulary's product, attention and norms are the model's own and left out.
"""

from __future__ import annotations

import time
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class LayerClock:
    """`seconds` grows with every call of a layer of one of `kinds`, and with its part of the backward."""

    def __init__(self, model: nn.Module, kinds: tuple[type, ...]) -> None:
        self.seconds = 0.0
        self.layers = [module for module in model.modules() if isinstance(module, kinds)]
        self._hooks: list[RemovableHandle] = []
        for layer in self.layers:
            self._hooks.append(layer.register_forward_pre_hook(self._start))
            self._hooks.append(layer.register_forward_hook(self._stop))
            self._hooks.append(layer.register_full_backward_pre_hook(self._start))
            self._hooks.append(layer.register_full_backward_hook(self._stop))

    def _start(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._since

    def remove(self) -> None:
        """Takes the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def taken(self) -> float:
        """The seconds since the last time this was asked."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
