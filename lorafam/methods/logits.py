"""What an output head gives while nobody has looked: x Wᵀ + bias as a tensor that is computed when its values are asked
for, and of which `cross_entropy` takes the loss without them (`functional.linear_cross_entropy`).

The logits of 512 tokens over 262,144 words are 537 MB, their softmax and its gradient as much again, and a training
step reads nothing but the loss of them. Shapes and dtypes, views that leave the vocabulary whole (of the leading sizes,
some tokens, in fp32, detached) are answered without a value; whatever else torch does with it gets the values, formed
once, by the head's own product, and is recorded by autograd as ever.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import functional as F
from ..compat.torch import is_watched, parsed_to, without_overrides

Tensor = torch.Tensor
# "eager": every head computes its logits at once
VARIABLE = "LORAFAM_LOGITS"


def logits_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> Logits:
    """x Wᵀ + bias [..., V] of x [..., K], computed when it is looked at."""
    head = _Head(x if torch.is_grad_enabled() else x.detach(), weight, bias)
    return head.view(head.x, x.dtype, lambda: head.values())


class _Head:
    """A call of an output head: what its values depend on, and the values once they are known."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.x, self.weight, self.bias = x, weight, bias
        self.is_recorded = torch.is_grad_enabled()
        self.has_loss = False
        self.views: weakref.WeakSet[_Values] = weakref.WeakSet()
        self._versions = self._now()
        self._values: Tensor | None = None

    def _now(self) -> list[int]:
        return [tensor._version for tensor in (self.x, self.weight, self.bias) if tensor is not None]

    @property
    def is_known(self) -> bool:
        """Whether the values were computed: whoever did so may have changed them."""
        return self._values is not None

    def check_inputs(self) -> None:
        """Raises RuntimeError where they aren't what they were when the head was called."""
        if self._now() != self._versions:
            raise RuntimeError(
                "logits: the head's input or weight was changed in place before they were looked at; "
                f"{VARIABLE}=eager has them computed at once"
            )

    def values(self) -> Tensor:
        """The values, computed at the first call, as they would have been when the head was called."""
        if self._values is None:
            self.check_inputs()
            with torch.inference_mode(False), torch.set_grad_enabled(self.is_recorded), _no_autocast():
                self._values = F.nf4_linear(self.x, self.weight, self.bias)
            # a copy in another dtype is of now, not of what may be written later
            for view in list(self.views):
                view.get()
        return self._values

    def view(self, x: Tensor, dtype: torch.dtype, make: Callable[[], Tensor]) -> Logits:
        """Logits for tokens x, which `make` gives where the values are known."""
        values = _Values(self, make)
        self.views.add(values)
        logits = _LogitsFunction.apply(x, self.weight, dtype)
        logits._x, logits._held = x, values
        return logits


class _Values:
    """The values of one view."""

    def __init__(self, head: _Head, make: Callable[[], Tensor]) -> None:
        self.head, self._make = head, make
        self._is_recorded = torch.is_grad_enabled()
        self._known: Tensor | None = None

    def get(self) -> Tensor:
        if self._known is None:
            with torch.inference_mode(False), torch.set_grad_enabled(self._is_recorded):
                self._known = self._make()
        return self._known


class _LogitsFunction(torch.autograd.Function):
    """The logits to autograd: for those who take them without asking Python, a Function in C++ say."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        shape = (*x.shape[:-1], weight.shape[0])
        return Tensor._make_wrapper_subclass(Logits, shape, dtype=dtype, device=x.device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return grad.to(ctx.dtype) @ weight, None, None


class Logits(Tensor):
    """See the module."""

    # tokens [..., K], with their place in autograd's graph
    _x: Tensor
    _held: _Values

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ABOUT:
            with without_overrides():
                return func(*args, **kwargs)
        way = _WAYS.get(func)
        if way is not None and args and isinstance(args[0], Logits) and not args[0]._held.head.is_known:
            found = way(*args, **kwargs)
            if found is not None:
                return found
        if func in _HOOKS and args and args[0]._held.head.has_loss:
            raise RuntimeError(
                f"logits.{func.__name__}: their loss was taken without them, it gives them no gradient; "
                f"ask before, or set {VARIABLE}=eager"
            )
        return func(*_seen(args), **_seen(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*_seen(args, detached=True), **_seen(kwargs or {}, detached=True))


def _no_autocast() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def _seen(value: Any, detached: bool = False) -> Any:
    """The same with values in the place of logits."""
    if isinstance(value, Logits):
        found = value._held.get()
        return found.detach() if detached else found
    if isinstance(value, dict):
        return {key: _seen(one, detached) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_seen(one, detached) for one in value)
    return value


def _view(logits: Logits, x: Tensor, make: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> Logits:
    """Of logits, those of tokens x, which `make` would give of the values."""
    held = logits._held
    return held.head.view(x, dtype or logits.dtype, lambda: make(held.get()))


def _reshape(logits: Logits, *shape: Any) -> Logits | None:
    sizes = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], list | tuple) else list(shape)
    if not sizes or not all(type(size) is int for size in sizes) or sizes.count(-1) > 1:
        return None
    whole, known = logits.numel(), 1
    for size in sizes:
        known *= 1 if size == -1 else size
    sizes = [whole // known if size == -1 and known else size for size in sizes]
    product = 1
    for size in sizes:
        product *= size
    if product != whole or sizes[-1] != logits.shape[-1]:
        return None
    return _view(logits, logits._x.reshape(*sizes[:-1], logits._x.shape[-1]), lambda values: values.reshape(sizes))


def _index(logits: Logits, index: Any) -> Logits | None:
    """Some of the tokens: slices, whole numbers, one tensor of places or of yes and no."""
    if isinstance(index, Tensor):
        fits = type(index) is Tensor and index.dtype in (torch.bool, torch.int64)
        if not fits or (index.dtype == torch.bool and index.ndim >= logits.ndim):
            return None
    else:
        parts = list(index) if isinstance(index, tuple) else [index]
        if not all(part is ... or type(part) in (int, slice) for part in parts) or parts.count(...) > 1:
            return None
        if ... in parts:
            at = parts.index(...)
            last = parts[-1] if at < len(parts) - 1 else slice(None)
        else:
            last = parts[-1] if len(parts) == logits.ndim else slice(None)
        if last != slice(None):
            return None
    x = logits._x[index]
    return _view(logits, x, lambda values: values[index]) if x.ndim else None


def _to(logits: Logits, *args: Any, **kwargs: Any) -> Logits | None:
    # with a memory format, or a copy
    if len(args) > 2 or not kwargs.keys() <= {"device", "dtype", "non_blocking"}:
        return None
    device, dtype = parsed_to(*args, **kwargs)[:2]
    return None if device is not None and device.type != "cpu" else _cast(logits, dtype or logits.dtype)


def _cast(logits: Logits, dtype: torch.dtype = torch.float32) -> Logits | None:
    if dtype == logits.dtype:
        return logits
    if dtype != torch.float32:
        return None
    return _view(logits, logits._x, lambda values: values.to(dtype), dtype)


def _itself(logits: Logits) -> Logits:
    return logits


def _contiguous(logits: Logits, *options: Any, **more: Any) -> Logits | None:
    return None if options or more else _view(logits, logits._x, Tensor.contiguous)


def _detached(logits: Logits) -> Logits:
    return _view(logits, logits._x.detach(), Tensor.detach)


def _loss(
    logits: Logits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    """`torch.nn.functional.cross_entropy`, where it is the plain one of a class each."""
    if weight is not None or size_average is not None or reduce is not None or label_smoothing or logits.ndim != 2:
        return None
    plain = type(target) is Tensor and target.dtype == torch.int64 and target.is_cpu
    if not plain or target.shape != logits.shape[:1] or torch.is_autocast_enabled("cpu") or is_watched():
        return None
    head = logits._held.head
    head.check_inputs()
    head.has_loss = True
    loss = F.linear_cross_entropy(
        logits._x, head.weight, target, head.bias, ignore_index=ignore_index, reduction=reduction
    )
    return loss.to(logits.dtype)


_HOOKS = {Tensor.register_hook, Tensor.retain_grad, Tensor.register_post_accumulate_grad_hook}
# what is told without values
_ABOUT = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim", "is_cpu", "is_cuda")),
    *(getattr(Tensor, name).__get__ for name in ("requires_grad", "is_leaf", "grad_fn", "is_sparse", "is_meta")),
    *(getattr(Tensor, name).__get__ for name in ("itemsize", "nbytes", "is_quantized", "is_nested", "is_mkldnn")),
    *(getattr(Tensor, name) for name in ("size", "dim", "numel", "nelement", "ndimension", "element_size", "__len__")),
    *(getattr(Tensor, name) for name in ("is_floating_point", "is_complex", "get_device", "__hash__", "is_inference")),
    *(torch.is_floating_point, torch.is_complex, torch.numel, torch.is_inference),
}
_WAYS: dict[Any, Callable[..., Tensor | None]] = {
    Tensor.view: _reshape,
    Tensor.reshape: _reshape,
    torch.reshape: _reshape,
    Tensor.__getitem__: _index,
    Tensor.contiguous: _contiguous,
    Tensor.cpu: _itself,
    Tensor.float: _cast,
    Tensor.to: _to,
    Tensor.detach: _detached,
    torch.detach: _detached,
    torch.nn.functional.cross_entropy: _loss,
}
