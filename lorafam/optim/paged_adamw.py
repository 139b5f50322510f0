"""AdamW whose states leave the memory of the device when others need it (the paged optimiser of arXiv 2305.14314)."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from .adamw_update import Piece, pieces, update
from .paged_memory import bitsandbytes_functional, page_folder
from .paged_state import PagedPlace, layout, place_all

Tensor = torch.Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# what torch.optim.AdamW can and this can't
_UNKNOWN_VARIANTS = ("amsgrad", "maximize")


class PagedAdamW(Optimizer):
    """`torch.optim.AdamW` with the states of all parameters, small ones too, in one paged buffer a device.

    p = (1 − lr λ) p − lr m̂ / (√v̂ + ε), in fp32, for parameters in fp32, bf16 or fp16 (arXiv 1711.05101).

    bits           32: fp32 states, the same results as `torch.optim.AdamW(fused=True)` for fp32 parameters. 8: codes in
                   blocks of 256 (arXiv 2110.02861), but 32 for parameters of fewer than `min_8bit_size` elements.
    page_file      parameters on the CPU: the folder of the file that holds the states; it should be on a disk, in a
                   tmpfs nothing is gained. None: the system's folder for temporary files, or /var/tmp or the working
                   folder where that is a tmpfs. The file has no name and is gone with the optimiser, however the
                   process ends; it is no checkpoint.

    Parameters on CUDA need bitsandbytes, for unified memory. The buffer is taken in the first step, for the parameters
    of all groups; parameters added later get one of their own. `state_dict` is that of `torch.optim.AdamW` for 32 bits,
    either loads the other's; for 8 bits `exp_avg`, `exp_avg_sq` are codes, and `exp_avg_absmax`, `exp_avg_sq_absmax`
    come with them. As there, its tensors are the states themselves, not copies. A copy or pickle has the states in a
    buffer of its own.

    Raises ValueError or TypeError naming the argument, ImportError without bitsandbytes for parameters on CUDA; in
    `step` RuntimeError for sparse gradients and parameters that have moved or changed shape, OSError where the disk has
    no room.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        bits: int = 32,
        page_file: str | os.PathLike[str] | None = None,
        min_8bit_size: int = 4096,
    ) -> None:
        if bits not in (8, 32):
            raise ValueError(f"bits: expected 8 or 32, got {bits!r}")
        if not isinstance(min_8bit_size, int) or min_8bit_size < 0:
            raise ValueError(f"min_8bit_size: expected a number of elements, got {min_8bit_size!r}")
        if page_file is not None:
            page_folder(page_file)
        self.bits, self.min_8bit_size, self.page_file = bits, min_8bit_size, page_file
        self._places: dict[Tensor, PagedPlace] = {}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters; what it doesn't say is as in the constructor. Raises as that does."""
        _check_settings({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            for parameter in self.param_groups[-1]["params"]:
                _check_parameter(parameter)
        except BaseException:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient. Returns what `closure` returned, which is called with gradients
        on.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        for _, parameters in groups:
            for parameter in parameters:
                self._check_gradient(parameter)
        self._place_new()
        for _, parameters in groups:
            for parameter in parameters:
                self._begin(parameter)
        for group, parameters in groups:
            update((piece for parameter in parameters for piece in self._pieces(parameter)), group)
        return loss

    def adopt(self) -> None:
        """Takes states into the buffer that somebody else put into `state` (`RankAllocator.compact`)."""
        self._places = {p: self._places[p] for group in self.param_groups for p in group["params"] if p in self._places}
        given = {parameter: states for parameter, states in self.state.items() if parameter not in self._places}
        if given:
            self._place_new()
        for parameter, states in given.items():
            self._take_over(parameter, states)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copies the states in; see the class. Raises ValueError, before anything is changed, when they are of other
        parameters or bits, or of a variant (amsgrad, maximize) that isn't this.
        """
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        saved_groups, saved_states = state_dict["param_groups"], state_dict["state"]
        sizes = [len(group["params"]) for group in self.param_groups]
        saved_sizes = [len(group["params"]) for group in saved_groups]
        if sizes != saved_sizes:
            raise ValueError(f"state_dict: expected groups of {sizes} parameters, got groups of {saved_sizes}")
        mine = [parameter for group in self.param_groups for parameter in group["params"]]
        numbers = [number for group in saved_groups for number in group["params"]]
        for group in saved_groups:
            _check_settings({**self.defaults, **group})
        states = {p: saved_states[number] for p, number in zip(mine, numbers, strict=True) if number in saved_states}
        for number, parameter in zip(numbers, mine, strict=True):
            if parameter in states:
                self._check_state(states[parameter], parameter, number)
        if states:
            self._place_new()
        self.state.clear()
        for parameter, saved in states.items():
            self._take_over(parameter, saved)
        for group, saved_group in zip(self.param_groups, saved_groups, strict=True):
            group.update(
                {
                    name: copy.deepcopy(value)
                    for name, value in saved_group.items()
                    if name not in ("params", "param_names")
                }
            )
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in ("bits", "min_8bit_size", "page_file")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._places = {}
        copied = dict(self.state)
        if copied:
            self._place_new()
        for parameter, states in copied.items():
            self._take_over(parameter, states)

    def _bits(self, parameter: Tensor) -> int:
        return self.bits if parameter.numel() >= self.min_8bit_size else 32

    def _place_new(self) -> None:
        new = [p for group in self.param_groups for p in group["params"] if p not in self._places]
        if not new:
            return
        on_cpu = any(parameter.device.type == "cpu" for parameter in new)
        if self.page_file is not None and not on_cpu:
            raise ValueError("page_file: only parameters on the CPU have one, got parameters on CUDA alone")
        folder = page_folder(self.page_file) if on_cpu else None
        self._places |= place_all(((parameter, self._bits(parameter)) for parameter in new), folder)

    def _begin(self, parameter: Tensor) -> None:
        """The state of a parameter whose first gradient this is."""
        if not self.state[parameter]:
            tensors = self._places[parameter].tensors
            for tensor in tensors.values():
                tensor.zero_()
            self.state[parameter] = {"step": torch.zeros((), dtype=torch.float32), **tensors}

    def _pieces(self, parameter: Tensor) -> Iterable[Piece]:
        step = self.state[parameter]["step"]
        step += 1
        return pieces(parameter, parameter.grad, self._places[parameter], int(step))

    @torch.no_grad()
    def _take_over(self, parameter: Tensor, saved: dict[str, Any]) -> None:
        place = self._places[parameter]
        for name, tensor in place.tensors.items():
            tensor.copy_(saved[name])
        step = torch.tensor(float(saved["step"]), dtype=torch.float32)
        self.state[parameter] = {"step": step, **place.tensors}

    def _check_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        if parameter.grad.layout != torch.strided:
            raise RuntimeError(f"step: expected dense gradients, got one with layout {parameter.grad.layout}")
        place = self._places.get(parameter)
        if place is None:
            return
        states = place.tensors["exp_avg"]
        if (states.shape, states.device) != (parameter.shape, parameter.device):
            raise RuntimeError(
                f"step: expected a parameter {list(states.shape)} on {states.device}, as in the first step, "
                f"got {list(parameter.shape)} on {parameter.device}; make a new optimiser after moving or resizing"
            )

    def _check_state(self, saved: dict[str, Any], parameter: Tensor, number: int) -> None:
        expected = layout(parameter.shape, self._bits(parameter))
        if saved.keys() != {"step", *expected}:
            raise ValueError(
                f"state_dict: expected {sorted(['step', *expected])} for parameter {number} ({self._bits(parameter)} "
                f"bits), got {sorted(saved)}"
            )
        for name, (shape, dtype) in expected.items():
            tensor = saved[name]
            if tensor.shape != shape or (tensor.dtype == torch.uint8) != (dtype == torch.uint8):
                raise ValueError(
                    f"state_dict: expected {name} of parameter {number} as {dtype} {list(shape)}, "
                    f"got {tensor.dtype} {list(tensor.shape)}"
                )


def _check_settings(group: dict[str, Any]) -> None:
    for name in ("lr", "eps", "weight_decay"):
        value = _number(name, group[name])
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a finite number that isn't negative, got {value}")
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas: expected two numbers, got {betas!r}")
    for beta in betas:
        if not 0 <= _number("betas", beta) < 1:
            raise ValueError(f"betas: expected two numbers in [0, 1), got {tuple(betas)}")
    for name in _UNKNOWN_VARIANTS:
        if group.get(name):
            raise ValueError(f"{name}: PagedAdamW doesn't have it, got {group[name]!r}")


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def _check_parameter(parameter: Tensor) -> None:
    if hasattr(parameter, "to_local"):
        raise TypeError("params: expected whole tensors, got a DTensor (sharded by FSDP2 or tensor parallelism)")
    if parameter.dtype not in _DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise ValueError(f"params: expected one of {names}, got {parameter.dtype}")
    if parameter.device.type not in ("cpu", "cuda"):
        raise ValueError(f"params: expected parameters on the CPU or CUDA, got one on {parameter.device}")
    if parameter.device.type == "cuda":
        bitsandbytes_functional()
