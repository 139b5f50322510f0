"""How many kernels a layer's forward and backward launch: lorafam's own, and operations of torch and bitsandbytes that
compute. Such an operation is counted as one kernel, whatever it launches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorafam.backends.selection import run
from lorafam.ops.library import OPS

from .chains import Chain
from .stubs import Driver


class Launches(NamedTuple):
    """By whom."""

    own: int
    others: int

    @property
    def all(self) -> int:
        return self.own + self.others


class _Operations(TorchDispatchMode):
    """Counts operations whose result is neither memory as it is nor a view."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "lorafam":
            with self:
                return run(OPS[name], "cpu", *args)
        found = func(*args, **(kwargs or {}))
        first = found[0] if isinstance(found, list | tuple) else found
        given = {one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)}
        is_view = isinstance(first, torch.Tensor) and first.untyped_storage().data_ptr() in given
        self.count += func._schema.is_mutable or not (is_view or "empty" in name)
        return found


def count(chain: Chain, driver: Driver) -> tuple[Launches, Launches]:
    """Of the first link's forward, and of its backward."""
    counts = []
    y = None
    for step in ("forward", "backward"):
        before = driver.launches
        with _Operations() as operations:
            if step == "forward":
                y = chain.links[0](chain.x)
            elif y is not None:
                y.backward(chain.grad_y)
        counts.append(Launches(driver.launches - before, operations.count))
    for leaf in chain.leaves:
        leaf.grad = None
    return counts[0], counts[1]
