"""Folding an adapter into the base of its layer, and taking a new one out of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..compat.accelerate import is_offloaded, loaded
from .adapter import Adapter
from .base_weight import dense_base_weight, own_weight
from .folded import Face, Folded
from .initialisers import from_weight
from .merge_report import MergeReport, measure, probe_rows, row_blocks
from .stored_weight import in_format, merged_format, put_weight, rows_of, same_format, stored_weight, with_weight

Tensor = torch.Tensor


@torch.no_grad()
def fold(layer: Any, safe: bool, into: str, probe: Tensor | None, threshold: float) -> tuple[Folded, MergeReport]:
    """Puts the merged base in; `AdapterLayer.merge` says the rest."""
    if layer.merged:
        raise RuntimeError("merge: the layer is merged already")
    if not layer.has_active:
        raise RuntimeError(f"merge: the layer has no adapter {layer.active_adapter!r}, expected an active one")
    base = layer.base_layer
    offloaded = is_offloaded(base)
    with loaded([base]):
        weight, bias = own_weight(base), layer.base_bias()
    # one that is formed anew in each forward would lose what is put there
    formed = not offloaded and stored_weight(base) is None
    if weight is None or formed or (offloaded and isinstance(base, nn.Embedding)):
        raise TypeError(f"merge: the weight of a {type(base).__name__} can't be replaced")
    form = merged_format(into, weight)
    probe = probe_rows(probe, layer.in_features, weight.device)
    before = rows_of(weight)
    target = torch.empty(before.shape, dtype=form.dtype, device=before.device)
    changed = False
    for rows in row_blocks(before):
        exact = layer.merged_weight(before[rows].double(), rows)
        changed = changed or not torch.equal(exact, before[rows].double())
        target[rows] = exact
    # what is put into an offloaded base is lost
    in_place = same_format(form, weight) and not offloaded
    new_bias = layer.merged_bias(bias if in_place or bias is None or form.quant_type else bias.to(form.dtype))
    if bias is None and new_bias is not None:
        new_bias = new_bias.to(form.dtype)
    if safe and not (target.isfinite().all() and (new_bias is None or new_bias.isfinite().all())):
        raise ValueError(f"merge: the merged weight has NaN or inf in {form.name}")
    # codes that are decoded and quantised again needn't come back: a base that nothing is added to stays
    stored = in_format(target, form) if changed or not in_place else weight
    del before, target
    if in_place:
        before_face = Face.of(base)
        put_weight(base, stored)
        if new_bias is not bias:
            base.bias = nn.Parameter(new_bias, requires_grad=False)
    else:
        before_face = Face(base, None, None)
        layer.base_layer = with_weight(base, stored, new_bias)
    report = measure(
        type(base).__name__,
        form.name,
        before=rows_of(weight),
        exact=layer.merged_weight,
        stored=rows_of(stored),
        probe=probe,
        threshold=threshold,
    )
    return Folded(before_face, weight, layer.base_layer), report


@torch.no_grad()
def take_from_base(base: nn.Module, adapter: Adapter, init: str) -> None:
    """Gives A and B a part of the base's weight, which keeps the rest, stored as it is."""
    weight = own_weight(base)
    if weight is None or stored_weight(base) is None:
        raise TypeError(f"init: the weight of a {type(base).__name__} can't be replaced")
    dense = dense_base_weight(base)
    A, B = from_weight(init, dense, adapter.rank, adapter.scaling)
    form = merged_format("same", weight)
    rest = torch.addmm(dense, B, A, alpha=-adapter.scaling)
    put_weight(base, in_format(rest.to(form.dtype), form))
    adapter.start_from(A, B)
