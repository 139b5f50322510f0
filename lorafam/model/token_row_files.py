"""Rows of tokens in PEFT's files, both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .adapter_file import AdapterFile
from .peft_format import PREFIX, TENSOR_FILE
from .tensor_keys import clean_path
from .token_rows import token_rows

Tensor = torch.Tensor
Whole = dict[str, dict[str, Tensor]]
_HOLDER, _ROWS = ".token_adapter", "trainable_tokens_delta"


def saved_rows(model: nn.Module, adapter: str) -> tuple[dict[str, list[int]], dict[str, Tensor]]:
    """Path → tokens, and the rows under PEFT's names, of what an adapter has."""
    tokens, tensors = {}, {}
    for path, module in token_rows(model).items():
        if module.has(adapter):
            own = clean_path(path)
            tokens[own] = module.tokens[adapter]
            tensors[f"{PREFIX}{own}{_HOLDER}.{_ROWS}"] = module.rows[adapter].detach().cpu().clone().contiguous()
    return tokens, tensors


def file_rows(file: AdapterFile) -> dict[str, tuple[list[int], Tensor]]:
    """Path of a table → tokens and rows [n, D], taken out of what a file has whole. Raises ValueError where its
    settings and its tensors don't agree.
    """
    wanted = file.config.trainable_token_indices
    by_path: dict[str, tuple[list[int], Tensor]] = {}
    for given in [given for given, tensors in file.whole.items() if _ROWS in tensors]:
        path, rows = given.removesuffix(_HOLDER), file.whole[given].pop(_ROWS)
        tokens: Any = wanted
        if isinstance(wanted, Mapping):
            tokens = next((tokens for name, tokens in wanted.items() if path.endswith(name)), None)
        if not tokens or rows.ndim != 2 or len(tokens) != len(rows):
            told = "none" if not tokens else f"those of {len(tokens)} tokens"
            raise ValueError(f"{TENSOR_FILE}: has rows {list(rows.shape)} of {path!r}, expected {told}")
        by_path[path] = list(tokens), rows
    if wanted and not by_path:
        raise ValueError(f"{TENSOR_FILE}: has no rows, which trainable_token_indices say it has")
    for given in [given for given, tensors in file.whole.items() if not tensors]:
        del file.whole[given]
    return by_path


def take_rows(wanted: Mapping[str, Sequence[int]], width: Mapping[str, int], whole: Whole) -> dict[str, Tensor]:
    """Takes each table's rows out of `whole`. Raises ValueError for rows that are missing, of another shape or for no
    table.
    """
    taken = {}
    for path, tokens in wanted.items():
        own = clean_path(path)
        told = f"{TENSOR_FILE}: {PREFIX}{own}{_HOLDER}.{_ROWS}"
        rows = whole.get(own + _HOLDER, {}).pop(_ROWS, None)
        expected = [len(tokens), width[path]]
        if rows is None:
            raise ValueError(f"{told} is missing, which trainable_token_indices say it has")
        if list(rows.shape) != expected:
            raise ValueError(f"{told} has shape {list(rows.shape)}, expected {expected}")
        taken[path] = rows
    for given in [given for given, tensors in whole.items() if not tensors]:
        del whole[given]
    return taken


@torch.no_grad()
def put_rows(model: nn.Module, rows: Mapping[str, Tensor], adapter: str) -> None:
    """Copies a file's rows in."""
    for path, tensor in rows.items():
        module: Any = model.get_submodule(path)
        module.rows[adapter].copy_(tensor)
