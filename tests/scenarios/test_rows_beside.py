"""Rows of a batch that choose an adapter which has more than layers: modules trained whole, rows of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import lorafam
from lorafam import AdapterConfig
from tests.model.tiny import disturb, tokens
from tests.scenarios.files import BASES, close, logits
from tests.scenarios.models import WAYS

QV = ["q_proj", "v_proj"]
# base, what the first has, what the second has, whether PEFT takes it
BESIDE: dict[str, tuple[str, dict[str, Any], dict[str, Any], bool]] = {
    "heads": ("llama", {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["lm_head"]}, True),
    "a head of one": ("llama", {}, {"modules_to_save": ["lm_head"]}, False),
    "tables": ("llama", {"modules_to_save": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}, True),
    "norms": ("llama", {"modules_to_save": ["norm"]}, {"modules_to_save": ["norm"]}, False),
    "tokens": ("llama", {"trainable_token_indices": [1, 5]}, {"trainable_token_indices": [5, 7, 9]}, True),
    "tokens, tied": ("tied", {"trainable_token_indices": [1, 5]}, {"trainable_token_indices": [5, 7, 9]}, True),
    "tokens of one": ("tied", {}, {"trainable_token_indices": [5, 7, 9]}, False),
}
NAMES = ["b", None, "default", "b"]


def files(name: str, folder: Path) -> None:
    base, first, second, _ = BESIDE[name]
    for index, (adapter, more) in enumerate({"default": first, "b": second}.items()):
        theirs = get_peft_model(BASES[base](), LoraConfig(r=4, target_modules=QV, **more))
        disturb(theirs, index + 1)
        theirs.save_pretrained(folder / adapter)


def each_alone(name: str, folder: Path) -> torch.Tensor:
    """What each row of the batch gives where its adapter is the only one."""
    batch, out = tokens(rows=len(NAMES)), []
    for row, adapter in enumerate(NAMES):
        model: Any = BASES[BESIDE[name][0]]()
        if adapter is not None:
            lorafam.load_adapter(model, folder / adapter)
        with torch.no_grad():
            out.append(model.eval()(batch[row : row + 1]).logits[0])
    return torch.stack(out)


@pytest.mark.parametrize("way", WAYS[:3])
@pytest.mark.parametrize("name", BESIDE)
@torch.no_grad()
def test_rows_have_what_their_adapter_has(way: str, name: str, tmp_path: Path) -> None:
    files(name, tmp_path)
    wanted, batch = each_alone(name, tmp_path), tokens(rows=len(NAMES))
    base, _, _, taken = BESIDE[name]
    if way in WAYS[:2]:
        theirs: Any = PeftModel.from_pretrained(BASES[base](), tmp_path / "default").eval()
        theirs.load_adapter(tmp_path / "b", "b")
        if way == "accelerated":
            lorafam.accelerate(theirs)
        rows = [name or "__base__" for name in NAMES]
        if taken:
            close(theirs(input_ids=batch, adapter_names=rows).logits, wanted)
        else:
            with pytest.raises((TypeError, KeyError), match=r"Mixed batching is only supported|default"):
                theirs(input_ids=batch, adapter_names=rows)
        return
    model: Any = lorafam.load_adapter(BASES[base](), tmp_path / "default").eval()
    lorafam.load_adapter(model, tmp_path / "b", "b")
    whole = model(batch).logits
    with lorafam.adapters_by_row(model, NAMES):
        close(model(batch).logits, wanted)
        # beams
        twice = model(batch.repeat_interleave(2, 0)).logits
        close(twice, wanted.repeat_interleave(2, 0))
        with lorafam.disabled(model):
            close(model(batch).logits, BASES[base]().eval()(batch).logits)
        with pytest.raises(ValueError, match="expected a batch of 4 rows"):
            model(batch[:3])
    assert torch.equal(model(batch).logits, whole)


def test_a_module_of_several_inputs_is_refused() -> None:
    config = AdapterConfig(r=4, target_modules=["gate_proj"], modules_to_save=["layers.1.self_attn"])
    model = lorafam.adapt(BASES["llama"](), config)
    with (
        lorafam.adapters_by_row(model, ["default", None]),
        pytest.raises(ValueError, match="row_adapters: expected modules of one tensor to another, a LlamaAttention"),
    ):
        logits(model)


class Longest(nn.Module):
    """A table whose rows are shortened when they are looked up."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner = nn.Embedding(20, 16, max_norm=1.5), nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.inner(self.table(ids))


@pytest.mark.parametrize("way", WAYS[:3])
def test_rows_of_a_table_with_a_greatest_norm(way: str) -> None:
    settings: dict[str, Any] = {"r": 4, "target_modules": ["inner"], "trainable_token_indices": {"table": [1, 5]}}
    if way in WAYS[:2]:
        model: Any = get_peft_model(Longest(), LoraConfig(**settings))
        if way == "accelerated":
            lorafam.accelerate(model)
        rows = model.base_model.model.table.token_adapter.trainable_tokens_delta["default"]
    else:
        model = lorafam.adapt(Longest(), AdapterConfig(**settings))
        rows = model.table.rows["default"]
    with torch.no_grad():
        rows[0] *= 10
        rows[1] *= 0.1
    kept = rows.detach().clone()
    plain = Longest()
    with torch.no_grad():
        plain.table.weight[[1, 5]] = kept
    y, wanted = model(torch.arange(8)), plain(torch.arange(8))
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
    y.sum().backward()
    assert torch.equal(rows, kept)
    assert rows.grad.abs().sum() > 0
