"""Modules trained whole beside the adapters and saved with them (PEFT's modules_to_save): new heads above all."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..methods import AdapterLayer
from ..methods.rows import put_by_row, rows_of_batch
from .peft_format import PREFIX, TENSOR_FILE
from .tensor_keys import clean_path

# classes that transformers gives a new head, and what it calls heads where the model's body isn't named
_TASKS = ("Classification", "QuestionAnswering", "MultipleChoice", "NextSentencePrediction", "Regression")
_HEADS = ("classifier", "score", "qa_outputs", "projector", "pre_classifier", "classification_head", "regression_head")


class SavedModule(nn.Module):
    """`base_layer`, frozen, and a trainable copy of it for each adapter that has one; the active one's answers."""

    def __init__(self, base: nn.Module, adapter: str) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.copies = nn.ModuleDict()
        self.enabled = True
        self.row_adapters: tuple[str | None, ...] | None = None
        self.active_adapter = adapter
        self.add_adapter(adapter)
        self.set_adapter(adapter)

    def add_adapter(self, name: str) -> None:
        """A copy of the base, not trainable until it is the active one."""
        self.copies[name] = copy.deepcopy(self.base_layer).requires_grad_(False)

    def set_adapter(self, name: str) -> None:
        """Makes an adapter the active one: the base answers where it has no copy."""
        self.active_adapter = name
        for other, module in self.copies.items():
            module.requires_grad_(other == name)

    def has(self, name: str) -> bool:
        """Whether an adapter has a copy of its own."""
        return name in self.copies

    def forget(self, name: str) -> None:
        """Drops an adapter's copy."""
        if name in self.copies:
            del self.copies[name]

    @property
    def active(self) -> nn.Module:
        """What answers."""
        usable = self.enabled and self.active_adapter in self.copies
        return self.copies[self.active_adapter] if usable else self.base_layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.enabled and self.row_adapters is not None and any(self.row_adapters):
            return self._by_row(self.row_adapters, *args, **kwargs)
        return (self.active if self.row_adapters is None else self.base_layer)(*args, **kwargs)

    def _by_row(self, names: Sequence[str | None], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Each row through the copy of the adapter that it names. Raises ValueError for a module of several inputs."""
        y = self.base_layer(*args, **kwargs)
        if len(args) != 1 or kwargs or not all(isinstance(one, torch.Tensor) for one in (args[0], y)):
            told = f"a {type(self.base_layer).__name__}, which is saved whole, has others"
            raise ValueError(f"row_adapters: expected modules of one tensor to another, {told}")
        x = args[0]
        rows = rows_of_batch(x, names, 2 if x.is_floating_point() else 1)
        outputs = {name: partial(self._rows_of, x, self.copies[name]) for name in names if name}
        return put_by_row(y, rows, outputs)

    @staticmethod
    def _rows_of(x: torch.Tensor, module: nn.Module, at: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = module(x[at])
        return found

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "copies" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.active, name)

    def extra_repr(self) -> str:
        return f"active_adapter={self.active_adapter!r}"


def saved_modules(model: nn.Module) -> dict[str, SavedModule]:
    """Path → module, in the model's order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, SavedModule)}


def outer_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Path → module, without what is inside adapter layers and modules saved whole."""
    outer: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if path.startswith(inside):
            continue
        if isinstance(module, AdapterLayer | SavedModule):
            inside += (f"{path}." if path else "",)
        outer[path] = module
    return outer


def find_saved(model: nn.Module, names: Sequence[str] | None, targets: str | Sequence[str] | None) -> list[str]:
    """The paths that `names` end, within a part too, as in PEFT ("norm" means "input_layernorm").

    For None the new heads of a model for a task, unless they are adapted by name.
    Raises ValueError for a name that no module has.
    """
    paths = [path for path in outer_modules(model) if path]
    if names is None:
        named = [] if targets is None or isinstance(targets, str) else [name.rsplit(".", 1)[-1] for name in targets]
        return [path for path in _new_heads(model) if path not in named]
    matches: list[str] = []
    for name in names:
        # of a module in wrappers the innermost
        hits = list({clean_path(path): path for path in paths if clean_path(path).endswith(name)}.values())
        if not hits:
            raise ValueError(f"modules_to_save: no module is called {name!r}")
        for path in hits:
            module = model.get_submodule(path)
            if isinstance(module, AdapterLayer):
                raise ValueError(f"modules_to_save: {path!r} is adapted already, expected one of them")
            if isinstance(module, nn.ModuleList | nn.ModuleDict):
                raise ValueError(f"modules_to_save: {path!r}, a {type(module).__name__}, can't be trained whole")
        matches += hits
    # what is inside another is saved with it
    return [path for path in dict.fromkeys(matches) if not any(path.startswith(f"{other}.") for other in matches)]


def _new_heads(model: nn.Module) -> list[str]:
    if not any(type(model).__name__.endswith(task) for task in _TASKS):
        return []
    body = getattr(model, "base_model_prefix", None)
    children = {path: child for path, child in model.named_children() if next(child.parameters(), None) is not None}
    if body in children:
        return [path for path in children if path != body]
    return [path for path in children if path in _HEADS]


def inside(path: str, paths: Sequence[str]) -> bool:
    """Whether a module is one of these or in one."""
    return any(path == one or path.startswith(f"{one}.") for one in paths)


def is_saved(path: str, names: Sequence[str]) -> bool:
    """Whether modules_to_save mean the module at `path`, or one that it is in."""
    parts = path.split(".")
    return any(".".join(parts[:end]).endswith(tuple(names)) for end in range(1, len(parts) + 1)) if names else False


def saved_tensors(model: nn.Module, adapter: str | None) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Paths and tensors, under PEFT's names, of the copies that an adapter has (None: the active one)."""
    paths, tensors = [], {}
    for path, module in saved_modules(model).items():
        name = module.active_adapter if adapter is None else adapter
        if name in module.copies:
            paths.append(clean_path(path))
            for ending, tensor in module.copies[name].state_dict().items():
                tensors[f"{PREFIX}{paths[-1]}.{clean_path(ending)}"] = tensor.detach().cpu().clone().contiguous()
    return paths, tensors


def take_saved(
    modules: Mapping[str, nn.Module], whole: dict[str, dict[str, torch.Tensor]]
) -> dict[str, dict[str, torch.Tensor]]:
    """Takes each module's tensors out of `whole`: path → its state. Raises ValueError for one that is missing or has
    another shape.
    """
    states: dict[str, dict[str, torch.Tensor]] = {}
    for path, module in modules.items():
        own = clean_path(path)
        state = {}
        for given in [given for given in whole if inside(given, [own])]:
            for ending, tensor in whole.pop(given).items():
                state[f"{given}.{ending}"[len(own) + 1 :]] = tensor
        wanted = {clean_path(name): tensor for name, tensor in module.state_dict().items()}
        for name in sorted(wanted.keys() | state.keys()):
            told = f"{TENSOR_FILE}: {PREFIX + own + '.' + name!r}"
            if name not in state:
                raise ValueError(f"{told} is missing, which modules_to_save says it has")
            if name not in wanted:
                raise ValueError(f"{told} has no place in the model's {type(module).__name__}")
            if state[name].shape != wanted[name].shape:
                shapes = f"{list(state[name].shape)}, expected {list(wanted[name].shape)}"
                raise ValueError(f"{told} has shape {shapes}")
        states[path] = state
    return states


@torch.no_grad()
def put_saved(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copies a state in, whatever wraps parts of the module."""
    for name, tensor in module.state_dict().items():
        tensor.copy_(state[clean_path(name)])


def active_copies(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What answers at each path, for putting it there for good."""
    for path, module in saved_modules(model).items():
        yield path, module.active
