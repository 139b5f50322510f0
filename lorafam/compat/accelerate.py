"""accelerate's hooks on a module, by which its tensors are loaded for its forward and are nowhere otherwise (CPU and
disk offload, device maps): `execution_device`, `offload`, `pre_forward`, `post_forward`. Never imports accelerate. Seen
in 1.15.0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

HOOK = "_hf_hook"


def _hooks(module: nn.Module) -> list[Any]:
    hook = module.__dict__.get(HOOK)
    return list(getattr(hook, "hooks", [] if hook is None else [hook]))


def execution_device(module: nn.Module) -> torch.device | None:
    """Where a module's forward computes, if a hook says so."""
    found = [device for hook in _hooks(module) if (device := getattr(hook, "execution_device", None)) is not None]
    return torch.device(found[-1]) if found else None


def is_offloaded(module: nn.Module) -> bool:
    """Whether the module's tensors are there in its forward alone."""
    return any(getattr(hook, "offload", False) for hook in _hooks(module))


@contextlib.contextmanager
def loaded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the tensors of those of the modules that are offloaded are there; changes to them are lost."""
    with contextlib.ExitStack() as stack:
        for module in filter(is_offloaded, modules):
            hook: Any = module.__dict__[HOOK]
            hook.pre_forward(module)
            stack.callback(hook.post_forward, module, None)
        yield
