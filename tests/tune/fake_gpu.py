"""A GPU in name only: its ops ask the launch table as the real ones do and answer with eager's results, its clock runs
when the test says so, and how long a configuration takes is the test's.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lorafam.kernels.launch_config import LaunchConfig
from lorafam.kernels.launch_table import DENSE, ELEMENTS, launch_config
from lorafam.kernels.paths import path_of

from lorafam.backends import eager
from lorafam.tune.gpu import Gpu
from lorafam.tune.points import Point

ARCHITECTURE = "sm_90"
PATH = Point("lora_linear_path", 64, 128, 64, 16, "bfloat16", "nf4")
PROJECT = Point("lora_project", 0, 128, 4, 16, "bfloat16", "none")
NORM = Point("row_norm", 64, 128, 0, 16, "bfloat16", "nf4")

RIGHT, WRONG, BROKEN, FATAL = "right", "wrong", "broken", "fatal"


class FakeGpu:
    """`behaviour` and `seconds` are by kernel (a product: its path) and configuration; a launch costs `cost`."""

    def __init__(
        self,
        behaviour: Callable[[str, LaunchConfig], str] = lambda *_: RIGHT,
        seconds: Callable[[str, LaunchConfig], float] = lambda *_: 1.0,
        cost: float = 0.0,
    ) -> None:
        self.behaviour, self.seconds, self.cost = behaviour, seconds, cost
        self.now = 0.0
        self.launched: list[LaunchConfig] = []
        self.lost = False
        self._last = ("", LaunchConfig(()))

    def gpu(self) -> Gpu:
        ops = types.SimpleNamespace(lora_project=self._project, row_norm=self._norm, lora_linear=self._linear)
        return Gpu("Some GPU", ARCHITECTURE, torch.device("cpu"), ops, self._timer, lambda: self.now, self._probe)

    def _project(self, x: Any, A: Any, *rest: Any) -> Any:
        dtype = str(x.dtype).removeprefix("torch.")
        config = launch_config("lora_project", ARCHITECTURE, dtype, x.shape[0], K=x.shape[1], rank=A.shape[0])
        return self._launched("lora_project", config, eager.lora_project(x, A, *rest))

    def _norm(self, data: Any, scales: Any, layout: Any, A: Any, B_hat: Any, *rest: Any) -> Any:
        read, (N, rank), K = (ELEMENTS if scales else DENSE), B_hat.shape, A.shape[1]
        config = launch_config("row_norm", ARCHITECTURE, "float32", 0, read, N=N, K=K, rank=rank)
        return self._launched("row_norm", config, eager.row_norm(data, scales, layout, A, B_hat, *rest))

    def _linear(self, x: Any, data: Any, scales: Any, layout: Any, *rest: Any) -> Any:
        route = path_of("lora_linear", ARCHITECTURE, x.shape[0], layout[0], layout[1])
        kernel = " by ".join(part for part in route if part)
        return self._launched(kernel, LaunchConfig(()), eager.lora_linear(x, data, scales, layout, *rest))

    def _launched(self, kernel: str, config: LaunchConfig, result: Any) -> Any:
        self.now += self.cost
        self.launched.append(config)
        self._last = (kernel, config)
        how = self.behaviour(kernel, config)
        self.lost = self.lost or how == FATAL
        if how == BROKEN:
            raise RuntimeError("out of resource: shared memory\nmore")
        return result + 1 if how == WRONG else result

    def _timer(self, call: Callable[[], object], choices: Sequence[Callable[[], None]], repeats: int) -> list[float]:
        found = []
        for choose in choices:
            choose()
            call()
            found.append(self.seconds(*self._last))
        return found

    def _probe(self) -> None:
        if self.lost:
            raise RuntimeError("an illegal memory access")


def block(name: str) -> Callable[[str, LaunchConfig], int]:
    """The size of a block, 0 for a kernel that has none of that name."""
    return lambda _, config: dict(config.blocks).get(name, 0)
