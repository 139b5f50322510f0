"""Rows of an embedding table that an adapter has for itself (PEFT's trainable_token_indices): added tokens above all.

A token i of the adapter's has its row e_i instead of the table's; an output head that is tied to the table has the same
rows, y_i = e_i · x. The table itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as nnf

from ..config import AdapterConfig
from ..methods import AdapterLayer
from ..methods.rows import put_by_row, rows_of_batch
from .saved_module import SavedModule
from .tensor_keys import clean_path

Tensor = torch.Tensor


class TokenRows(nn.Module):
    """An nn.Embedding [V, D], or an nn.Linear head tied to one, with the active adapter's rows [n, D] in place of its
    own.
    """

    def __init__(self, base: nn.Module, first: TokenRows | None = None) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.rows = nn.ParameterDict()
        self.tokens: dict[str, list[int]] = {}
        self.enabled, self.active_adapter = True, ""
        self.row_adapters: tuple[str | None, ...] | None = None
        # whose rows these are; in a tuple, so that they are its parameters alone
        self._first = () if first is None else (first,)

    def has(self, name: str) -> bool:
        """Whether an adapter has rows of its own."""
        return name in self.tokens

    def add_adapter(self, name: str, tokens: Sequence[int]) -> None:
        """The table's rows of these tokens for a further adapter, not trainable until it is the active one."""
        weight: Any = self.base_layer.weight
        self.tokens[name] = list(tokens)
        self.rows[name] = nn.Parameter(weight.detach()[self.tokens[name]].clone(), requires_grad=False)

    def set_adapter(self, name: str) -> None:
        """Makes an adapter the active one: the table answers where it has no rows."""
        self.active_adapter = name
        for other, rows in self.rows.items():
            rows.requires_grad_(other == name)

    def forget(self, name: str) -> None:
        """Drops an adapter's rows."""
        if name in self.tokens:
            del self.tokens[name], self.rows[name]

    @property
    def holder(self) -> TokenRows:
        return self._first[0] if self._first else self

    def _own(self) -> tuple[list[int], Tensor] | None:
        """The n tokens and their rows [n, D] that count now."""
        holder, name = self.holder, self.holder.active_adapter
        usable = holder.enabled and name in holder.tokens
        return (holder.tokens[name], holder.rows[name]) if usable else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        holder = self.holder
        names = holder.row_adapters
        if names is None:
            own = self._own()
            return y if own is None else self._put_in(x, y, *own)
        if not holder.enabled:
            return y
        rows = rows_of_batch(x, names, 2 if x.is_floating_point() else 1)
        outputs = {name: partial(self._rows_of, x, y, name) for name in names if name}
        return put_by_row(y, rows, outputs)

    def _rows_of(self, x: Tensor, y: Tensor, name: str, at: Tensor) -> Tensor:
        holder = self.holder
        return self._put_in(x[at], y[at], holder.tokens[name], holder.rows[name])

    def _put_in(self, x: Tensor, y: Tensor, tokens: list[int], rows: Tensor) -> Tensor:
        """y with an adapter's rows in place of the table's."""
        base: Any = self.base_layer
        table: Any = base.weight
        where = torch.tensor(tokens, device=x.device)
        if isinstance(base, nn.Linear):
            bias = None if base.bias is None else base.bias[where]
            return y.index_copy(-1, where, nnf.linear(x, rows.to(x.dtype), bias).to(y.dtype))
        places = torch.full((table.shape[0],), -1, device=x.device)
        places[where] = torch.arange(len(tokens), device=x.device)
        at = places[x]
        # a row for padding isn't trained
        hidden: Any = base.padding_idx
        padding = tokens.index(hidden) if hidden in tokens else None
        longest = base.max_norm
        # rows that are too long are shortened in place: in PEFT those of the copy that each forward makes of the table
        own = rows if longest is None else rows.clone()
        found = nnf.embedding(at.clamp_min(0), own, padding, longest, base.norm_type).to(y.dtype)
        # some models multiply what they look up
        scale: Any = getattr(base, "embed_scale", None)
        found = found if scale is None else found * torch.as_tensor(scale).to(found.dtype)
        return torch.where((at >= 0).unsqueeze(-1), found, y)

    @property
    def weight(self) -> Tensor:
        """The table with the active adapter's rows, for models that compute with it themselves."""
        if self.holder.row_adapters is not None and any(self.holder.row_adapters):
            raise ValueError("row_adapters: a module computes with the table itself, all rows would have one adapter's")
        own = self._own()
        weight: Any = self.base_layer.weight
        if own is None:
            return weight
        return weight.index_copy(0, torch.tensor(own[0], device=weight.device), own[1].to(weight.dtype))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "base_layer" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(super().__getattr__("base_layer"), name)

    @torch.no_grad()
    def unloaded(self) -> nn.Module:
        """The base, the active adapter's rows written into its table."""
        own = self._own()
        if own is not None:
            weight: Any = self.base_layer.weight
            weight[own[0]] = own[1].to(weight.dtype)
        return self.base_layer

    def extra_repr(self) -> str:
        return f"active_adapter={self.active_adapter!r}, tokens={ {name: len(t) for name, t in self.tokens.items()} }"


def token_rows(model: nn.Module) -> dict[str, TokenRows]:
    """Path → module, in the model's order; tied ones, which have no rows of their own, too."""
    return {path: module for path, module in model.named_modules() if isinstance(module, TokenRows)}


def find_token_rows(model: nn.Module, config: AdapterConfig) -> dict[str, list[int]]:
    """Path of a table → the tokens that `trainable_token_indices` mean there.

    Raises ValueError for a table that isn't there, is adapted or trained whole, or isn't a plain nn.Embedding, and for
    a token that it doesn't have.
    """
    wanted = config.trainable_token_indices
    if wanted is None:
        return {}
    if not isinstance(wanted, Mapping):
        table = getattr(model, "get_input_embeddings", lambda: None)()
        path = next((path for path, module in model.named_modules() if module is table and table is not None), None)
        wanted = {"embed_tokens" if path is None else path: wanted}
    by_path: dict[str, list[int]] = {}
    for name, tokens in wanted.items():
        hits = [path for path, _ in model.named_modules() if clean_path(path).endswith(name) and _is_outer(model, path)]
        if not hits:
            raise ValueError(f"trainable_token_indices: no module is called {name!r}")
        for path in hits:
            _check_table(model.get_submodule(path), path, tokens)
            by_path[path] = list(tokens)
    # what is tied to the input table has that one's rows
    table = getattr(model, "get_input_embeddings", lambda: None)()
    main = next((path for path, module in model.named_modules() if module is table and table is not None), None)
    first = {} if main is None else {id(_weight(table)): main}
    for path in list(by_path):
        other = first.setdefault(id(_weight(model.get_submodule(path))), path)
        if other != path and by_path.get(other) != by_path.pop(path):
            told = f"{path!r} is tied to {other!r}, expected the same tokens for both"
            raise ValueError(f"trainable_token_indices: {told}")
    return by_path


def _weight(module: Any) -> Any:
    return module.base_layer.weight if isinstance(module, AdapterLayer | SavedModule | TokenRows) else module.weight


def _is_outer(model: nn.Module, path: str) -> bool:
    parts = path.split(".")
    parents = (model.get_submodule(".".join(parts[:end])) for end in range(len(parts)))
    return not any(isinstance(parent, AdapterLayer | SavedModule | TokenRows) for parent in parents)


def _check_table(module: nn.Module, path: str, tokens: Sequence[int]) -> None:
    if isinstance(module, AdapterLayer | SavedModule):
        raise ValueError(f"trainable_token_indices: {path!r} is adapted or trained whole already, expected one of them")
    table: Any = module.base_layer if isinstance(module, TokenRows) else module
    if not isinstance(table, nn.Embedding | nn.Linear) or not isinstance(table.weight, nn.Parameter):
        raise ValueError(f"trainable_token_indices: {path!r} is a {type(table).__name__}, expected an nn.Embedding")
    if getattr(table, "sparse", False):
        raise ValueError(f"trainable_token_indices: {path!r} is sparse, expected a plain nn.Embedding")
    beyond = [token for token in tokens if token >= table.weight.shape[0]]
    if beyond:
        count = table.weight.shape[0]
        raise ValueError(f"trainable_token_indices: expected tokens below {count}, which {path!r} has; got {beyond[0]}")


def put_token_rows(model: nn.Module, wanted: Mapping[str, Sequence[int]], name: str, active: str) -> None:
    """Gives an adapter rows of its own; what is tied to a table has the same. `active` is the active adapter.

    Raises ValueError for a table that is adapted or trained whole.
    """
    for path, tokens in wanted.items():
        module: Any = model.get_submodule(path)
        # what was put there since it was looked for
        _check_table(module, path, tokens)
        if not isinstance(module, TokenRows):
            module = _around(model, module)
        module.add_adapter(name, tokens)
        module.set_adapter(active)


def _around(model: nn.Module, table: Any) -> TokenRows:
    """`TokenRows` in the place of a table and of all that share its weight."""
    weight, first = table.weight, TokenRows(table)
    made: dict[int, nn.Module] = {id(table): first}
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, nn.Embedding | nn.Linear) and child.weight is weight and parent is not first:
                if isinstance(parent, AdapterLayer | SavedModule):
                    raise ValueError("trainable_token_indices: expected tables that aren't tied to an adapted layer")
                parent._modules[child_name] = made.setdefault(id(child), TokenRows(child, first))
    return first


def unload_token_rows(model: nn.Module) -> None:
    """Puts the tables back, the active adapter's rows written into them."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, TokenRows):
                parent._modules[name] = child.unloaded()
