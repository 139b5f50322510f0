"""Embedding tables and output heads that an adapter's file has whole, as PEFT writes them beside an adapter that
changes them or after the vocabulary was resized. The model takes them over, and its files have them from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..methods import AdapterLayer
from .peft_format import PREFIX, TENSOR_FILE
from .tensor_keys import clean_path

# tensor's name → (the parameter it is for, its values)
Table = dict[str, tuple[nn.Parameter, torch.Tensor]]
_BASE = ".base_layer"


def file_tables(model: nn.Module, whole: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, Table]:
    """Path → the tables that are others than the model's. Raises ValueError for what isn't such a table, or has another
    shape.
    """
    modules = {clean_path(path): module for path, module in model.named_modules()}
    found: dict[str, Table] = {}
    for given, tensors in whole.items():
        path = given.removesuffix(_BASE)
        module: Any = modules.get(path)
        base = module.base_layer if isinstance(module, AdapterLayer) else module
        for ending, tensor in tensors.items():
            name = f"{PREFIX}{given}.{ending}"
            parameter = getattr(base, ending, None)
            if not isinstance(base, nn.Embedding | nn.Linear) or not isinstance(parameter, nn.Parameter):
                raise ValueError(f"{TENSOR_FILE}: has {name!r}, which the model has no place for")
            if parameter.shape != tensor.shape:
                raise ValueError(
                    f"{TENSOR_FILE}: {name!r} has shape {list(tensor.shape)}, the model's has {list(parameter.shape)}; "
                    "a vocabulary that grew needs resize_token_embeddings first"
                )
            if parameter.is_meta or not torch.equal(tensor.to(parameter), parameter):
                found.setdefault(path, {})[ending] = parameter, tensor
    return found


@torch.no_grad()
def put_tables(model: nn.Module, tables: Mapping[str, Table]) -> None:
    """Copies them into the model, which remembers that they are no more the base's own."""
    for table in tables.values():
        for parameter, tensor in table.values():
            parameter.copy_(tensor)
    known = getattr(model, "lorafam_tables", ())
    if tables:
        model.lorafam_tables = tuple(dict.fromkeys((*known, *tables)))  # type: ignore[assignment]


def saved_tables(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tables that came from a file, under PEFT's names."""
    modules = {clean_path(path): module for path, module in model.named_modules()}
    found = {}
    for path in getattr(model, "lorafam_tables", ()):
        module: Any = modules.get(path)
        adapted = isinstance(module, AdapterLayer)
        weight = module.base_layer.weight if adapted else module.weight
        found[f"{PREFIX}{path}{_BASE if adapted else ''}.weight"] = weight.detach().cpu().clone().contiguous()
    return found
