"""transformers' Trainer and save_pretrained on a model whose linear layers are 4-bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import lorafam
from tests.model.tiny import disturb, tiny_model, tokens


@pytest.mark.parametrize("double_quant", [True, False])
def test_a_quantised_model_is_checkpointed_and_resumed(tmp_path: Path, double_quant: bool) -> None:
    data = [{"input_ids": row, "labels": row} for row in tokens(8)]
    ends = []
    for folder, resume in ((tmp_path / "whole", None), (tmp_path / "again", str(tmp_path / "whole" / "checkpoint-2"))):
        model = lorafam.adapt(tiny_model(), lorafam.AdapterConfig(r=4, quantize="nf4", double_quant=double_quant))
        arguments = TrainingArguments(
            str(folder), max_steps=4, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, seed=1
        )
        Trainer(model, arguments, train_dataset=data).train(resume_from_checkpoint=resume)
        ends.append(model.state_dict())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_what_is_saved_holds_each_layers_own_levels(tmp_path: Path) -> None:
    model = lorafam.adapt(tiny_model(), lorafam.AdapterConfig(r=4, quantize="nf4"))
    disturb(model)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    twin = lorafam.adapt(tiny_model(1), lorafam.AdapterConfig(r=4, quantize="nf4"))
    twin.load_state_dict(state, strict=False)
    torch.testing.assert_close(twin(tokens()).logits, model(tokens()).logits)
