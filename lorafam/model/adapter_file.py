"""An adapter's folder, read and checked by itself: settings, tensors under PEFT's names, whole tables beside them."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..config import AdapterConfig
from ..methods import METHODS
from .peft_format import PREFIX, TENSOR_FILE
from .peft_settings import CONFIG_FILE, adapter_config
from .tensor_keys import clean_keys

Tensor = torch.Tensor

# what torch.save wrote before PEFT wrote safetensors
OLD_TENSOR_FILE = "adapter_model.bin"
_MARKERS = re.compile("|".join({rf"\.{method.marker}" for method in METHODS.values()}))
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass
class AdapterFile:
    """`tensors`: an adapter's, under PEFT's names. `whole`: path → name → tensor of modules that the file has whole, an
    adapted layer's base among them. `kept_ranks`: path → AdaLoRA's ranks that were kept. `ties`: whether what is tied
    to a module has the same adapter or copy (PEFT's ensure_weight_tying), which the settings don't name. `shared`: what
    all layers share, by attribute.
    """

    config: AdapterConfig
    tensors: dict[str, Tensor]
    whole: dict[str, dict[str, Tensor]]
    kept_ranks: dict[str, list[bool]]
    fan_in_fan_out: bool
    ties: bool
    shared: dict[str, Tensor]

    @property
    def names_saved(self) -> tuple[str, ...]:
        """modules_to_save."""
        return tuple(self.config.modules_to_save or ())

    @property
    def paths(self) -> list[str]:
        """Of the modules that the tensors are for."""
        return list(dict.fromkeys(path_of(name) for name in self.tensors))


def read_adapter(folder: Path, *, own_module: bool = False) -> AdapterFile:
    """`own_module`: the model has a part that is called "module", which is no wrapper's name then.

    Raises FileNotFoundError; ValueError with the file and the key for anything that isn't as it should be.
    """
    values = read_config(folder / CONFIG_FILE)
    config = adapter_config(values)
    file = tensor_file(folder)
    found = read_tensors(file)
    names = METHODS[config.method].shared_names
    shared = {attribute: found.pop(name) for attribute, name in names.items() if name in found}
    named = clean_keys(found, PREFIX, file.name, own_module=own_module)
    tensors: dict[str, Tensor] = {}
    whole: dict[str, dict[str, Tensor]] = {}
    for name, tensor in named.items():
        if not name.startswith(PREFIX):
            raise ValueError(
                f"{file.name}: {name!r} is no tensor of an adapter, expected a name with {PREFIX!r} before it"
            )
        # of VeLoRA's backward, which stores less
        if ".lora_velora_" in name:
            continue
        if is_an_adapters(name):
            tensors[name] = tensor
            continue
        path, _, ending = name[len(PREFIX) :].rpartition(".")
        # PEFT writes a saved module's biases twice, with bias="all", and those of the module that it stands for
        if {"modules_to_save", "original_module"} & {*path.split(".")}:
            continue
        whole.setdefault(path, {})[ending] = tensor
    if not tensors:
        raise ValueError(f"{file.name}: expected an adapter's tensors, got none")
    kept = {}
    if METHODS[config.method].allocates_ranks:
        pattern: Mapping[str, list[bool]] = values.get("rank_pattern") or {}
        kept = {
            path_of(key): ranks
            for key, ranks in clean_keys(pattern, PREFIX, CONFIG_FILE, own_module=own_module).items()
        }
    fan_in_fan_out, ties = bool(values.get("fan_in_fan_out")), bool(values.get("ensure_weight_tying"))
    return AdapterFile(config, tensors, whole, kept, fan_in_fan_out, ties, shared)


def path_of(name: str) -> str:
    """The module's path in an adapter tensor's name."""
    name = name.removeprefix(PREFIX)
    markers = list(_MARKERS.finditer(name))
    return name[: markers[-1].start()] if markers else ""


def is_an_adapters(name: str) -> bool:
    """Whether a name is that of a method's tensor."""
    return _MARKERS.search(name) is not None


def tensor_file(folder: Path) -> Path:
    """The safetensors file, or torch.save's where there is no other."""
    if not (folder / TENSOR_FILE).is_file() and (folder / OLD_TENSOR_FILE).is_file():
        return folder / OLD_TENSOR_FILE
    return folder / TENSOR_FILE


def read_config(path: Path) -> dict[str, Any]:
    """adapter_config.json. Raises FileNotFoundError, ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"directory: {path.parent} has no {path.name}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: damaged, expected an object")
    return values


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU: floats, finite, and at least one. Raises FileNotFoundError, ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"directory: {path.parent} has no {path.name}")
    tensors: Any
    if path.suffix == ".bin":
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path}: damaged, or more than tensors in it ({str(error).splitlines()[0]})") from None
    else:
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged, not a safetensors file ({error})") from None
    if not isinstance(tensors, dict):
        raise ValueError(f"{path}: damaged, expected tensors by name, got a {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{path.name}: {name!r} is a {type(tensor).__name__}, expected a tensor")
        # a module that is saved whole may count in integers
        if is_an_adapters(name) and tensor.dtype not in _FLOATS:
            raise ValueError(f"{path.name}: {name!r} has dtype {tensor.dtype}, expected floats of 16 to 64 bits")
        if not tensor.isfinite().all():
            raise ValueError(f"{path.name}: {name!r} has NaN or inf")
    return tensors
