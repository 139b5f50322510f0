"""Tensors of the base that an adapter's file has whole, as PEFT writes them beside an adapter: trained biases
(`bias="all"`, `"lora_only"`), embedding tables and heads that are adapted or were resized, others that were trained.

The model takes them over, and its files have them from then on. They are the base's: all adapters share them, and
`disabled` leaves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..methods import AdapterLayer, NF4Linear
from .peft_format import PREFIX, TENSOR_FILE
from .saved_module import SavedModule
from .tensor_keys import bare_key, clean_path
from .token_rows import TokenRows

# name in the bare model → (its parameter, the file's values)
BaseTensors = dict[str, tuple[nn.Parameter, torch.Tensor]]
BIASES = ("none", "all", "lora_only")


def base_parameters(model: nn.Module, adapter: str | None = None) -> dict[str, tuple[str, nn.Parameter]]:
    """Name in the bare model → name in PEFT's files, of this adapter (None: of all that are there), and the parameter;
    adapters' own are left out.
    """
    inside = {path: module for path, module in model.named_modules() if isinstance(module, _AROUND)}
    by_name = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        outer = [path for path in inside if name.startswith(f"{path}.") or not path]
        if any(not name[len(path) :].lstrip(".").startswith("base_layer.") for path in outer):
            continue
        around = {path: inside[path] for path in outer if adapter is None or _is_of(inside[path], adapter)}
        told = name
        for path in sorted(set(outer) - around.keys(), key=len, reverse=True):
            # for this adapter the module stands there bare
            start = f"{path}." if path else ""
            told = start + told.removeprefix(start).removeprefix("base_layer.")
        told, clean = clean_path(told), clean_path(name)
        # PEFT keeps what it saves whole elsewhere
        told = told if not any(isinstance(module, SavedModule) for module in around.values()) else ""
        rows = any(isinstance(module, TokenRows) for module in around.values())
        by_name[bare_key(clean)] = (
            told.replace(".base_layer.", ".token_adapter.base_layer.") if rows else told,
            parameter,
        )
    return by_name


def _is_of(module: Any, adapter: str) -> bool:
    if isinstance(module, AdapterLayer):
        return adapter in module.adapters
    # what is tied to a table has its rows
    return bool((module.holder if isinstance(module, TokenRows) else module).has(adapter))


_AROUND = (AdapterLayer, SavedModule, TokenRows)


def trained_biases(model: nn.Module, which: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Name in the bare model and parameter: "all" of the model's biases, or "lora_only" those of adapted layers."""
    layers = [path for path, module in model.named_modules() if isinstance(module, AdapterLayer)]
    adapted = {bare_key(f"{clean_path(path)}.bias") for path in layers}
    for name, (told, parameter) in base_parameters(model).items():
        if not told:
            # its module is trained whole, and this one is frozen beside the copy
            continue
        is_bias = name == "bias" or name.endswith(".bias")
        if (which == "all" and is_bias) or (which == "lora_only" and name in adapted):
            yield name, parameter


def _is_four_bit(model: nn.Module, name: str, known: Mapping[str, tuple[str, nn.Parameter]]) -> bool:
    if name in known:
        return not known[name][1].is_floating_point()
    path = name.rpartition(".")[0]
    return any(isinstance(one, NF4Linear) and bare_key(clean_path(own)) == path for own, one in model.named_modules())


def train_biases(model: nn.Module, which: str) -> None:
    """Makes them trainable; the model remembers what they were."""
    first = dict(getattr(model, "lorafam_first_biases", {}))
    for name, parameter in trained_biases(model, which):
        first.setdefault(name, parameter.detach().clone())
        parameter.requires_grad_(True)
    if first:
        model.lorafam_first_biases = first  # type: ignore[assignment]


def check_base(model: nn.Module, whole: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Raises ValueError where the base isn't any more what a file is for that doesn't have these tensors itself."""
    known, first = base_parameters(model), getattr(model, "lorafam_first_biases", {})
    resized = getattr(model, "lorafam_resized_tensors", ())
    changed = [name for name in getattr(model, "lorafam_base_tensors", ()) if name not in resized]
    changed += [
        name
        for name, tensor in first.items()
        if name in known and not (tensor.is_meta or torch.equal(tensor.to(known[name][1]), known[name][1]))
    ]
    missing = next((name for name in changed if not has_tensor(whole, (name,))), None)
    if missing is not None:
        raise ValueError(
            f"model: its {missing!r} was trained, merged into or loaded with an adapter, and {TENSOR_FILE}, which has "
            "none, is for the base as it was: load it into a bare model"
        )


def has_tensor(whole: Mapping[str, Mapping[str, torch.Tensor]], names: Sequence[str]) -> bool:
    """Whether a file has one of the base's tensors of these names."""
    given = {bare_key(f"{path}.{ending}") for path, tensors in whole.items() for ending in tensors}
    return any(name in given for name in names)


def file_base_tensors(model: nn.Module, whole: Mapping[str, Mapping[str, torch.Tensor]]) -> BaseTensors:
    """Those of a file that are others than the model's. Raises ValueError for one that the model has no parameter for,
    or one of another shape, or in 4 bits.
    """
    known = base_parameters(model)
    by_name: BaseTensors = {}
    for given, tensors in whole.items():
        for ending, tensor in tensors.items():
            told = f"{PREFIX}{given}.{ending}"
            name = bare_key(f"{given}.{ending}")
            if name not in known:
                raise ValueError(f"{TENSOR_FILE}: has {told!r}, which the model has no place for")
            parameter = known[name][1]
            if not parameter.is_floating_point():
                raise ValueError(f"{TENSOR_FILE}: has {told!r}, which the model has in {parameter.dtype}")
            if parameter.shape != tensor.shape:
                raise ValueError(
                    f"{TENSOR_FILE}: {told!r} has shape {list(tensor.shape)}, the model's has {list(parameter.shape)}; "
                    "a vocabulary that grew needs resize_token_embeddings first"
                )
            other = next((one for one, (there, _) in by_name.items() if there is parameter), None)
            if other is not None and not torch.equal(by_name[other][1], tensor):
                raise ValueError(f"{TENSOR_FILE}: {told!r} is another than {other!r}, to which the model ties it")
            by_name[name] = parameter, tensor
    return {
        name: (parameter, tensor)
        for name, (parameter, tensor) in by_name.items()
        if parameter.is_meta or not torch.equal(tensor.to(parameter), parameter)
    }


@torch.no_grad()
def put_base_tensors(model: nn.Module, tensors: BaseTensors) -> None:
    """Copies them into the model, which remembers that they are no more the base's own."""
    for parameter, tensor in tensors.values():
        parameter.copy_(tensor)
    remember_base_tensors(model, list(tensors))


def remember_base_tensors(model: nn.Module, names: Sequence[str]) -> None:
    """Has adapters' files hold these parameters, by name in the bare model, as they are no more the base's own."""
    if names:
        known = getattr(model, "lorafam_base_tensors", ())
        model.lorafam_base_tensors = tuple(dict.fromkeys((*known, *names)))  # type: ignore[assignment]


def saved_base_tensors(model: nn.Module, which: str, adapter: str) -> dict[str, torch.Tensor]:
    """What is no more the base's own and the biases that are trained, under PEFT's names for an adapter. Raises
    ValueError for a layer that was merged into 4 bits.
    """
    known = base_parameters(model, adapter)
    lost = [name for name in getattr(model, "lorafam_base_tensors", ()) if _is_four_bit(model, name, known)]
    if lost:
        raise ValueError(
            f"model: {lost[0]!r} was merged into 4 bits, which no adapter's file has, and what is saved would be for "
            "another base: merge into a dense format ('bf16'), or save the state_dict"
        )
    names = [*getattr(model, "lorafam_base_tensors", ()), *(name for name, _ in trained_biases(model, which))]
    found: dict[str, Any] = {}
    for told, parameter in (known[name] for name in dict.fromkeys(names) if name in known):
        if told:
            found[PREFIX + told] = parameter.detach().cpu().clone().contiguous()
    return found
