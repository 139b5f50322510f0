"""Calls like an earlier one are its steps again.

Checking arguments, choosing configurations, binding them and finding compiled kernels depends on shapes, strides,
dtypes, alignments and numbers alone. Up to a thousand tokens or so it takes the host longer than the GPU computes, so
the first call of a kind is listened to (`preparation`), and those like it are what it did (`prepared_call`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...compat.torch import current_cuda_device, raw_cuda_stream
from .. import selection
from .prepared_call import PreparedCall, Started

Tensor = torch.Tensor

# a tensor of another type may be anything
PLAIN: tuple[type, ...] = (Tensor, torch.nn.Parameter)
_VALUES = (type(None), float, int, bool, str, torch.dtype)
# some 8 KB each
_MOST_KNOWN = 1 << 13
_NOTHING = object()
# beside torch's indices of devices
_CPU, _REFUSED, _NOT_KNOWN = -1, -2, -3

# by what a call depends on; None is one that can't be repeated
_known: dict[Any, PreparedCall | None] = {}
_forgotten_too: list[dict[Any, Any]] = []
_times_forgotten = [0]
_thread = threading.local()


def forgotten_with_calls() -> dict[Any, Any]:
    """A dict for what known calls use: emptied when they are forgotten."""
    _forgotten_too.append({})
    return _forgotten_too[-1]


def forget() -> None:
    """No call is known any more."""
    _times_forgotten[0] += 1
    for one in (_known, *_forgotten_too):
        one.clear()


def tell(started: Started | None) -> None:
    """Tells of a launch, if a call is listened to; None is one that can't be made again."""
    listening = getattr(_thread, "listening", None)
    if listening is not None:
        listening.launched(started)


def prepared(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`: by its steps, where it is known. `name` says what it computes; args are tensors and values, in
    lists and tuples.
    """
    if getattr(_thread, "listening", None) is not None:
        return function(*args)
    tensors: list[Tensor] = []
    parts: list[Any] = [name]
    if _describe(args, tensors, parts, _NOT_KNOWN) < _CPU:
        return function(*args)
    where = _where(tensors[0])
    if where is None:
        return function(*args)
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        # one tensor in two places
        first: dict[int, int] = {}
        parts.append(tuple(first.setdefault(id(tensor), place) for place, tensor in enumerate(tensors)))
    key = (*parts, where)
    known = _known.get(key, _NOTHING)
    if known is None:
        return function(*args)
    kind = "cuda" if tensors[0].is_cuda else "cpu"
    if torch.is_grad_enabled() or torch.is_autocast_enabled(kind):
        # what was listened to ran below both
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            return _run(known, key, function, args, tensors)
    return _run(known, key, function, args, tensors)


def _run(known: Any, key: Any, function: Callable[..., Any], args: Sequence[Any], tensors: list[Tensor]) -> Any:
    if known is _NOTHING:
        return _first(key, function, args, tensors)
    try:
        return known(tensors)
    except BaseException:
        # a launch may have left arrivals counted
        forget()
        raise


def _first(key: Any, function: Callable[..., Any], args: Sequence[Any], tensors: list[Tensor]) -> Any:
    from .preparation import Preparation

    if not selection.is_settled("cuda" if tensors[0].is_cuda else "cpu"):
        return function(*args)
    if len(_known) >= _MOST_KNOWN:
        forget()
    before = _times_forgotten[0]
    preparation = _thread.listening = Preparation(tensors)
    try:
        with preparation:
            result = function(*args)
    finally:
        _thread.listening = None
    # else it may use what was forgotten meanwhile
    if before == _times_forgotten[0]:
        _known[key] = preparation.call(result)
    return result


def _describe(args: Sequence[Any], tensors: list[Tensor], key: list[Any], device: int) -> int:
    """Adds the tensors among `args`, and what of them a call depends on. The index of their device: `_REFUSED` where
    one isn't its bytes, or on another.
    """
    for arg in args:
        kind = type(arg)
        if kind in PLAIN:
            index = arg.get_device()
            # torch's dispatcher gives a lazily negated view its sign
            if arg.is_neg() or (index != device and device != _NOT_KNOWN):
                return _REFUSED
            device = index
            tensors.append(arg)
            key.append((arg.dtype, arg.shape, arg.stride(), arg.data_ptr() & 15))
        elif kind in _VALUES:
            key.append(arg)
        elif issubclass(kind, list | tuple):
            key.append(len(arg))
            device = _describe(arg, tensors, key, device)
            if device == _REFUSED:
                return device
        else:
            return _REFUSED
    return device


def _where(tensor: Tensor) -> Any:
    """What a call over `tensor` is prepared for, and the stream whose memory it may use. None where it isn't: on a
    device that isn't the current one, or captured by a CUDA graph, whose memory is its own.
    """
    from .launch import INTERPRETING, architecture, only_compiles

    if tensor.is_cuda:
        index = tensor.get_device()
        if index != current_cuda_device() or torch.cuda.is_current_stream_capturing():
            return None
        return index, raw_cuda_stream(index)
    return None if INTERPRETING or only_compiles() else architecture(tensor.device)
