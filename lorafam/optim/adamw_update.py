"""One step of AdamW (arXiv 1711.05101) on parameters and their paged states, a bounded piece after the other.

Arithmetic is fp32. Parameters and gradients that are contiguous fp32 are used where they lie, of others a piece is
widened, and the parameter rounded once from the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from ..compat.torch import fused_adamw_
from ..weights.dynamic_levels import dynamic_levels
from .paged_memory import PagedFile, UnifiedMemory, bitsandbytes_functional
from .paged_state import BLOCK, PagedPlace

Tensor = torch.Tensor

# elements updated at once, whole blocks: bounds the copies
CHUNK = {"cpu": 1 << 20, "cuda": 1 << 24}


class Piece(NamedTuple):
    """A part of a parameter, of its gradient and of its states, of the same shape; the number of the step, from 1."""

    parameter: Tensor
    gradient: Tensor
    states: dict[str, Tensor]
    step: int
    memory: PagedFile | UnifiedMemory


def pieces(parameter: Tensor, gradient: Tensor | None, place: PagedPlace, step: int) -> Iterator[Piece]:
    """Cuts what is contiguous and large; the rest is one piece."""
    assert gradient is not None
    states = place.tensors
    size, chunk = parameter.numel(), CHUNK[parameter.device.type]
    if size <= chunk or not (parameter.is_contiguous() and gradient.is_contiguous()):
        if size:
            yield Piece(parameter, gradient, states, step, place.memory)
        return
    flat, slope = parameter.view(-1), gradient.view(-1)
    for start in range(0, size, chunk):
        stop = min(start + chunk, size)
        parts = {
            name: tensor[start // BLOCK : -(-stop // BLOCK)] if name.endswith("absmax") else tensor.view(-1)[start:stop]
            for name, tensor in states.items()
        }
        yield Piece(flat[start:stop], slope[start:stop], parts, step, place.memory)


def update(found: Iterable[Piece], group: Mapping[str, Any]) -> None:
    """The step of a parameter group, in place."""
    scratch = Scratch()
    batch: list[Piece] = []
    elements = 0
    for piece in found:
        if "exp_avg_absmax" in piece.states:
            _update_8bit(piece, group, scratch)
            continue
        device = piece.parameter.device
        elements += piece.parameter.numel()
        if batch and (device != batch[0].parameter.device or elements > CHUNK[device.type]):
            _update_32bit(batch, group, scratch)
            batch, elements = [], piece.parameter.numel()
        batch.append(piece)
    if batch:
        _update_32bit(batch, group, scratch)


class Scratch:
    """Room for widened copies, taken once for a group: copies with memory of their own, between other objects, would
    leave holes in the heap.
    """

    def __init__(self) -> None:
        self._room: Tensor | None = None
        self._used = 0

    def free(self) -> None:
        """The copies made so far are no longer needed."""
        self._used = 0

    def wide(self, tensor: Tensor) -> Tensor:
        """Contiguous fp32: the tensor itself where it is that."""
        if tensor.dtype == torch.float32 and tensor.is_contiguous():
            return tensor
        start, stop = self._used, self._used + tensor.numel()
        if self._room is None or self._room.device != tensor.device:
            self._room = torch.empty(2 * CHUNK[tensor.device.type], dtype=torch.float32, device=tensor.device)
        if stop > self._room.numel():
            # not contiguous and larger than a piece
            return tensor.to(torch.float32).contiguous()
        self._used = stop
        return self._room[start:stop].view(tensor.shape).copy_(tensor)


def _update_32bit(batch: list[Piece], group: Mapping[str, Any], scratch: Scratch) -> None:
    scratch.free()
    parameters = [scratch.wide(piece.parameter) for piece in batch]
    device = parameters[0].device
    for memory in {id(piece.memory): piece.memory for piece in batch}.values():
        memory.prefetch(state for piece in batch if piece.memory is memory for state in piece.states.values())
    beta1, beta2 = group["betas"]
    fused_adamw_(
        parameters,
        [scratch.wide(piece.gradient) for piece in batch],
        [piece.states["exp_avg"] for piece in batch],
        [piece.states["exp_avg_sq"] for piece in batch],
        [],
        list(torch.tensor([piece.step for piece in batch], dtype=torch.float32).to(device).unbind()),
        lr=float(group["lr"]),
        beta1=float(beta1),
        beta2=float(beta2),
        weight_decay=float(group["weight_decay"]),
        eps=float(group["eps"]),
        amsgrad=False,
        maximize=False,
    )
    for piece, result in zip(batch, parameters, strict=True):
        _write_back(piece.parameter, result)


def _update_8bit(piece: Piece, group: Mapping[str, Any], scratch: Scratch) -> None:
    states = piece.states
    m, v = (states["exp_avg"], states["exp_avg_absmax"]), (states["exp_avg_sq"], states["exp_avg_sq_absmax"])
    device = piece.parameter.device
    levels = dynamic_levels(device), dynamic_levels(device, False)
    lr, (beta1, beta2) = float(group["lr"]), map(float, group["betas"])
    eps, weight_decay = float(group["eps"]), float(group["weight_decay"])
    if device.type != "cpu":
        piece.memory.prefetch(states.values())
        update_by_bitsandbytes(piece, levels, lr, beta1, beta2, eps, weight_decay)
        return
    from ..backends.numba_cpu.adamw_8bit import adamw_8bit

    scratch.free()
    parameter = scratch.wide(piece.parameter)
    adamw_8bit(
        parameter,
        scratch.wide(piece.gradient),
        (*m, *v),
        levels,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        step=piece.step,
    )
    _write_back(piece.parameter, parameter)


def update_by_bitsandbytes(
    piece: Piece, levels: tuple[Tensor, Tensor], lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
) -> None:
    """8-bit states in bitsandbytes' kernel, which applies the weight decay after the update (a difference of lr λ times
    the update).
    """
    states, parameter = piece.states, piece.parameter.contiguous()
    bitsandbytes_functional().optimizer_update_8bit_blockwise(
        "adam",
        piece.gradient.contiguous(),
        parameter,
        states["exp_avg"],
        states["exp_avg_sq"],
        beta1,
        beta2,
        0.0,
        0.0,
        eps,
        piece.step,
        lr,
        *levels,
        states["exp_avg_absmax"],
        states["exp_avg_sq_absmax"],
        weight_decay,
    )
    _write_back(piece.parameter, parameter)


def _write_back(parameter: Tensor, result: Tensor) -> None:
    if result is not parameter:
        parameter.copy_(result)
