"""Every op's schema, fake tensor and mutation declaration, by torch's own opcheck, on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafam.backends import eager
from lorafam.backends.self_check_cases import Draw
from lorafam.ops.library import OPS
from lorafam.ops.samples import OPTIONAL, Sample
from tests.conftest import device

STORAGES = ("dense", "NF4", "NF4, no whole blocks")
TOKENS, RANK = 5, 3


def arguments(op: str, storage: str) -> list[tuple[Any, ...]]:
    """Calls of an op with and without its optional arguments; none where it isn't over such a weight."""
    if op == "dequantize_4bit" and storage == "dense":
        return []
    draw = Draw(0, eager, torch.device(device()))
    weight = draw.weight(storage, torch.float32)
    calls = [Sample(draw, weight, torch.float32, TOKENS, RANK, given).arguments(op) for given in (OPTIONAL, ())]
    if op == "lora_linear_group":
        calls.append(Sample(draw, weight, torch.float32, TOKENS, RANK, biased=(False, True)).arguments(op))
    if op in ("dequantize_4bit", "quantize_4bit"):
        calls.append(Sample(draw, weight, torch.bfloat16, TOKENS, RANK).arguments(op))
    return calls


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("op", sorted(OPS))
def test_opcheck(op: str, storage: str, backend: str) -> None:
    for call in arguments(op, storage):
        torch.library.opcheck(getattr(torch.ops.lorafam, op).default, call)


def test_every_op_is_checked() -> None:
    for op in OPS:
        assert arguments(op, "NF4")
