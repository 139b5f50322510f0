"""PEFT's dict of scalings, adapter name to float, each also as a tensor: a compiled graph takes a float as a constant
and would be compiled anew for each value, a tensor's value may change under it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class Scalings(dict[str, float]):
    """A dict as PEFT has it; `tensor(name, device)` is a 0-dimensional fp64 tensor that follows every assignment."""

    def __init__(self, values: Mapping[str, float]) -> None:
        super().__init__()
        self._tensors: dict[str, torch.Tensor] = {}
        # `prepare_model_for_compiled_hotswap` makes them tensors, which swapping fills
        self._given: dict[str, torch.Tensor] = {}
        self.update(values)

    def __setitem__(self, name: str, value: float) -> None:
        super().__setitem__(name, value)
        if isinstance(value, torch.Tensor):
            self._given[name] = value
            return
        self._given.pop(name, None)
        tensor = self._tensors.get(name)
        if tensor is not None:
            tensor.fill_(value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def tensor(self, name: str, device: torch.device) -> torch.Tensor:
        given = self._given.get(name)
        if given is not None:
            return given if given.device == device else given.to(device)
        tensor = self._tensors.get(name)
        if tensor is None or tensor.device != device:
            # one made in inference mode couldn't be written to later
            with torch.inference_mode(False):
                tensor = self._tensors[name] = torch.full((), self[name], dtype=torch.float64, device=device)
        return tensor

    def __reduce__(self) -> Any:
        return Scalings, (dict(self),)
