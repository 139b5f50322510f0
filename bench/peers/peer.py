"""What the benchmark knows of somebody else's kernels: where they come from, what they cover, how they are called."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..case import Case

Tensor = torch.Tensor
Forward = Callable[[], Tensor]


@dataclass(frozen=True)
class Peer:
    """`make` gives the forward of a case, and the adapter tensors it differentiates, in the order of `Case.leaves()`.

    The case has its adapter in x's dtype. Nothing of the package is imported before `make` is called, and each peer
    runs in a process of its own, since some of them patch other libraries on import.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    cases: tuple[str, ...]
    make: Callable[[Case], tuple[Forward, list[Tensor]]]

    def missing(self) -> list[str]:
        """The packages that aren't installed."""
        return [package for package in self.packages if importlib.util.find_spec(package) is None]

    def version(self) -> str:
        """Of the first package; "unknown" where it was put on the path without being installed."""
        try:
            return importlib.metadata.version(self.packages[0])
        except importlib.metadata.PackageNotFoundError:
            return "unknown"
