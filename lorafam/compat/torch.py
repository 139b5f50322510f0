"""torch beside its documented interface. All of it was seen alike in 2.10.0, 2.11.0, 2.13.0 and 2.14.1, where nothing
else is said; none of it needs a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes

Function = TypeVar("Function", bound=Callable[..., Any])

# AdamW's fused step over lists of tensors, copies between lists, products of them: no public name takes lists
fused_adamw_ = torch._fused_adamw_
foreach_copy_ = torch._foreach_copy_
foreach_mul = torch._foreach_mul
_current_level = torch._C._functorch.maybe_current_level


def somebody_listens() -> bool:
    """Whether a mode (fake tensors, a counter of flops), a transform, a trace or the profiler wants to see every op."""
    return is_watched() or torch.autograd._profiler_enabled()


def is_watched() -> bool:
    """The same but for the profiler."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def without_overrides() -> AbstractContextManager[Any]:
    """Inside, tensor subclasses' `__torch_function__` isn't asked."""
    return torch._C.DisableTorchFunctionSubclass()


def parsed_to(*args: Any, **kwargs: Any) -> tuple[torch.device | None, torch.dtype | None, bool, Any]:
    """Device, dtype, whether it needn't wait, and memory format that `Tensor.to` was asked for; it knows no `copy`."""
    return torch._C._nn._parse_to(*args, **kwargs)


def without_modes() -> AbstractContextManager[Any]:
    """Inside, no mode sees what torch does."""
    return _disable_current_modes()


def has_no_value_now(tensor: torch.Tensor) -> bool:
    """Whether nothing can be decided by a tensor's value: a graph is compiled, or captured for a GPU."""
    if torch.compiler.is_compiling():
        return True
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def has_no_values(tensor: torch.Tensor) -> bool:
    """Whether a tensor only tells its shape: on the meta device, or a fake one."""
    return tensor.is_meta or type(tensor).__module__ == "torch._subclasses.fake_tensor"


def memory_of(device: torch.device) -> int:
    """Bytes that a device has; where that isn't known, and on the meta device, the most that torch can count."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "cpu" and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (1 << 63) - 1


def constant_in_graphs(function: Function) -> Function:
    """What `torch.compiler.assume_constant_result` makes of it, which imports the compiler first: a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


# of a graph that is compiled too: torch guards both
@constant_in_graphs
def is_transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD runs."""
    return _current_level() is not None or forward_ad._current_level >= 0


@contextmanager
def as_transformed() -> Iterator[None]:
    """Inside, `is_transformed` says so, whatever runs: `Module._slow_forward`, which torch.jit calls, has it so."""
    with nullcontext() if is_transformed() else forward_ad.dual_level():
        yield


def is_batched_for_backward(grad: Any) -> bool:
    """Whether a gradient is several at once (`torch.autograd.grad(..., is_grads_batched=True)`)."""
    return isinstance(grad, torch.Tensor) and torch._C._functorch.is_legacy_batchedtensor(grad)


def saved_tensors_of(ctx: Any, written: int) -> tuple[Any, ...]:
    """`ctx.saved_tensors` in a Function's backward, of which the one at the place `written` may have been changed in
    place since: its value is then what it is now. torch's check of the others stays.
    """
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        try:
            # a saved tensor with hooks isn't checked
            ctx._raw_saved_tensors[written].register_hooks(_itself, _itself)
        except RuntimeError:
            # it has hooks: another one was changed
            raise error from None
        return ctx.saved_tensors


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def is_recomputed_or_backward() -> bool:
    """Whether a forward will be run again or is (checkpointing: saved tensors go through hooks), or a backward runs."""
    return (
        torch._C._autograd._top_saved_tensors_default_hooks(False) is not None or torch._C._current_graph_task_id() >= 0
    )


def current_cuda_device() -> int:
    """`torch.cuda.current_device()` of a process that has used CUDA: without asking that first."""
    return torch._C._cuda_getDevice()


def raw_cuda_stream(index: int) -> int:
    """The handle of a device's current stream, without a `torch.cuda.Stream` around it."""
    return torch._C._cuda_getCurrentRawStream(index)


def onednn_linear() -> Any:
    """oneDNN's linear layer, with an overload that adds to a tensor: what torch.compile makes of one. Asked for where
    `torch.backends.mkldnn` is available.
    """
    return torch.ops.mkldnn._linear_pointwise


def active_ddp() -> DistributedDataParallel | None:
    """The DistributedDataParallel in whose forward this is called."""
    return DistributedDataParallel._get_active_ddp_module()


def set_up_anew(ddp: DistributedDataParallel) -> None:
    """Makes DDP's buckets of the sizes that the parameters have now, with its settings and hooks as they were."""
    hooks, training = ddp._comm_hooks, ddp.training
    ddp.__init__(  # type: ignore[misc]
        ddp.module,
        device_ids=ddp.device_ids,
        output_device=ddp.output_device,
        dim=ddp.dim,
        broadcast_buffers=ddp.broadcast_buffers,
        process_group=ddp.process_group,
        bucket_cap_mb=None if ddp.bucket_bytes_cap_default else ddp.bucket_bytes_cap / 2**20,
        find_unused_parameters=ddp.find_unused_parameters,
        gradient_as_bucket_view=ddp.gradient_as_bucket_view,
        static_graph=ddp.static_graph,
    )
    ddp.train(training)
    for hook, state in hooks:
        ddp.register_comm_hook(state, hook)


def hooks_of_fsdp(module: torch.nn.Module) -> list[Callable[..., Any]]:
    """The hooks by which FSDP2 marks a module whose parameters it manages."""
    hooks = module._load_state_dict_pre_hooks.values()
    return [hook for hook in hooks if getattr(hook, "__module__", "").startswith("torch.distributed.fsdp.")]


def before_loading(module: torch.nn.Module, hook: Callable[..., None]) -> None:
    """Has load_state_dict call `hook(module, state, prefix, ...)` before it loads anything; asked twice, once."""
    hooks = module._load_state_dict_pre_hooks.values()
    if not any(getattr(one, "hook", None) is hook for one in hooks):
        module.register_load_state_dict_pre_hook(hook)
