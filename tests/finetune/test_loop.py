"""Whole runs on a tiny model: they learn, they can be stopped anywhere, and going on gives the very same result."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaForCausalLM

import lorafam
from lorafam.finetune import FinetuneResult, InputError, finetune
from lorafam.finetune.recorder import SilentReporter
from lorafam.finetune.run_log import read_log
from tests.finetune.tiny_run import StopAt, settings
from tests.tolerances import assert_as_good_as_eager

RUNS: dict[str, dict[str, Any]] = {
    "lora": {},
    "qlora, accumulated": {"quantize": "nf4", "gradient_accumulation": 2, "batch_size": 2},
    "dora": {"method": "dora"},
    "qdora, input dropout": {"method": "dora", "quantize": "fp4", "dora_dropout": "input"},
    "adalora": {"method": "adalora", "adalora_interval": 1},
    "loftq": {"quantize": "nf4", "init": "loftq"},
    "qdora from the weight": {"method": "dora", "quantize": "nf4", "init": "pissa", "dora_norm_gradient": True},
    "paged": {"optimizer": "paged_adamw"},
    "paged, 8 bits": {"optimizer": "paged_adamw_8bit", "rank": 128},
    "checkpointed": {"quantize": "nf4", "gradient_checkpointing": True},
}


def adapter_bytes(output: Path) -> bytes:
    return (output / "adapter" / "adapter_model.safetensors").read_bytes()


# Before the first checkpoint (3), at one that isn't written yet (5), between two (8), shortly before the end (11).
@pytest.mark.parametrize(
    ("name", "stop"), [("lora", 3), ("lora", 11), ("adalora", 5), ("adalora", 11), *((name, 8) for name in RUNS)]
)
def test_resumed_run_is_the_same_run(name: str, stop: int, model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    changes = {"dropout": 0.3, **RUNS[name]}
    whole = finetune(settings(model_folder, text_file, tmp_path / "whole", **changes))
    config = settings(model_folder, text_file, tmp_path / "parts", **changes)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, reporter=StopAt(stop))
    assert not (tmp_path / "parts" / "adapter").exists()
    resumed = finetune(dataclasses.replace(config, resume=True))
    assert adapter_bytes(tmp_path / "parts") == adapter_bytes(tmp_path / "whole")
    assert (resumed.before, resumed.after) == (whole.before, whole.after)
    logs = [[strip(record) for record in read_log(result.log)] for result in (whole, resumed)]
    assert logs[0] == logs[1]
    assert [record["step"] for record in logs[0]] == list(range(13))
    assert [record["step"] for record in logs[0] if "held_out_loss" in record] == [0, 4, 8, 12]


def strip(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what time and the machine decide."""
    measured = ("seconds", "tokens_per_second", "resident_memory", "time")
    return {key: value for key, value in record.items() if key not in measured}


def test_dropout_and_seed_matter(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    """What the comparison above rests on: another seed or no dropout gives another adapter."""
    for name, changes in {"a": {}, "b": {"seed": 1}, "c": {"dropout": 0.3}}.items():
        finetune(settings(model_folder, text_file, tmp_path / name, steps=3, **changes))
    assert len({adapter_bytes(tmp_path / name) for name in "abc"}) == 3


def test_evaluating_and_saving_change_nothing(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    for name, changes in {"often": {"evaluate_every": 1, "save_every": 1}, "never": {"evaluate_every": 0}}.items():
        finetune(settings(model_folder, text_file, tmp_path / name, dropout=0.3, quantize="nf4", **changes))
    assert adapter_bytes(tmp_path / "often") == adapter_bytes(tmp_path / "never")


@pytest.mark.parametrize("name", ["lora", "qlora, accumulated", "qdora, input dropout", "adalora"])
def test_learns_and_leaves_everything(name: str, model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    config = settings(model_folder, text_file, tmp_path / "run", **{**RUNS[name], "steps": 40, "learning_rate": 2e-2})
    result = finetune(config)
    fall, error = result.fall
    assert fall > 4 * error > 0
    assert len(result.before.losses) == 4
    assert len(result.step_seconds) == 40
    assert result.seconds_per_step is not None
    assert result.seconds_per_step > 0
    assert result.peak_resident >= result.resident_after_loading > 0
    assert result.curves.read_bytes()[:4] == b"\x89PNG"
    saved = json.loads((tmp_path / "run" / "held_out.json").read_text())
    assert (tuple(saved["before"]), tuple(saved["after"])) == (result.before.losses, result.after.losses)
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-35", "checkpoint-40"]
    assert not list((tmp_path / "run").glob(".*"))


def test_adapter_loads_into_plain_peft(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    """The adapter a run leaves gives PEFT the model that was trained."""
    result = finetune(settings(model_folder, text_file, tmp_path / "run"))
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, result.adapter).eval()
    mine = lorafam.load_adapter(
        AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32), result.adapter
    ).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(mine(ids).logits, expected)
        with theirs.disable_adapter():
            assert (theirs(ids).logits - expected).abs().max() > 1e-2


def test_checkpoint_is_an_adapter_too(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    """The last checkpoint's adapter is the result, and holds nothing of the base model."""
    result = finetune(settings(model_folder, text_file, tmp_path / "run"))
    checkpoint = load_file(tmp_path / "run" / "checkpoint-12" / "adapter_model.safetensors")
    final = load_file(result.adapter / "adapter_model.safetensors")
    assert checkpoint.keys() == final.keys()
    assert all(torch.equal(checkpoint[name], final[name]) for name in final)
    assert all(".lora_" in name for name in final)
    assert sum(tensor.numel() for tensor in final.values()) == result.trainable_parameters


def peft_model(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", **changes))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_trains_a_peft_model_likewise(method: str, model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    """A PEFT model given to `finetune` takes the same steps as lorafam's, and can be resumed."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    mine = finetune(settings(model_folder, text_file, tmp_path / "mine", method=method))
    config = settings(model_folder, text_file, tmp_path / "theirs", method=method)
    with pytest.raises(KeyboardInterrupt):
        finetune(
            config,
            model=peft_model(model_folder, use_dora=method == "dora"),
            tokenizer=tokenizer,
            reporter=StopAt(8),
        )
    theirs = finetune(
        dataclasses.replace(config, resume=True),
        model=peft_model(model_folder, use_dora=method == "dora"),
        tokenizer=tokenizer,
    )
    assert theirs.trainable_parameters == mine.trainable_parameters
    # a processor's kernels may sum in another order than its library does: the last bit of a loss
    roundings = 4 * torch.finfo(torch.float32).eps
    assert theirs.before.losses == pytest.approx(mine.before.losses, rel=roundings, abs=0.0)
    assert theirs.after.mean == pytest.approx(mine.after.mean, abs=2e-2)
    reloaded = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(model_folder), theirs.adapter)
    assert reloaded.peft_config["default"].use_dora == (method == "dora")


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_fresh_adapter_is_as_close_to_the_base_as_peft_s(method: str, model_folder: Path) -> None:
    base = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    mine = lorafam.adapt(copy.deepcopy(base), lorafam.AdapterConfig(method=method, r=4))
    theirs = peft_model(model_folder, use_dora=method == "dora")
    ids = torch.randint(257, (4, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, eager, exact = (model.eval()(ids).logits for model in (mine, theirs, base.double()))
    assert_as_good_as_eager(logits, eager, exact, name=f"logits of a fresh {method}")


def test_finished_run_can_be_resumed(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    config = settings(model_folder, text_file, tmp_path / "run")
    first: FinetuneResult = finetune(config)
    before = adapter_bytes(tmp_path / "run")
    again = finetune(dataclasses.replace(config, resume=True))
    assert adapter_bytes(tmp_path / "run") == before
    assert (again.after, again.seconds_per_step) == (first.after, None)


class Notes(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_lost_evaluation_is_made_again(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    """Without held_out.json the bare model is evaluated again, before the checkpoint is loaded."""
    config = settings(model_folder, text_file, tmp_path / "run", method="dora")
    first = finetune(config)
    (tmp_path / "run" / "held_out.json").unlink()
    assert finetune(dataclasses.replace(config, resume=True)).before == first.before


def test_model_that_is_quantised_already(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    """A folder that bitsandbytes has quantised is trained as it is, like the dense one quantised here."""
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(model_folder, quantization_config=quantised, dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "model")
    theirs = finetune(settings(tmp_path / "model", text_file, tmp_path / "theirs"))
    mine = finetune(settings(model_folder, text_file, tmp_path / "mine", quantize="nf4"))
    assert theirs.before.mean == pytest.approx(mine.before.mean, abs=1e-5)
    assert theirs.after.mean == pytest.approx(mine.after.mean, abs=1e-3)
    assert theirs.fall[0] > 0.01


def test_damaged_checkpoint_is_passed_over(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    """A newest checkpoint with half an optimiser state isn't used; the one before leads to the same result."""
    config = settings(model_folder, text_file, tmp_path / "run", save_every=3, dropout=0.3)
    finetune(config)
    expected = adapter_bytes(tmp_path / "run")
    optimizer = tmp_path / "run" / "checkpoint-12" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    reporter = Notes()
    result = finetune(dataclasses.replace(config, resume=True), reporter=reporter)
    assert reporter.notes[:2] == ["passed over: checkpoint-12: optimizer.pt is damaged", "resuming from checkpoint-9"]
    assert len(result.step_seconds) == 3
    assert adapter_bytes(tmp_path / "run") == expected


def test_unknown_target_names_near_ones(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"target_modules: .*'q_prj'.*q_proj"):
        finetune(settings(model_folder, text_file, tmp_path / "run", target_modules=("q_prj",)))


def test_peft_adalora_is_refused(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(model_folder)
    schedule = {"init_r": 4, "target_r": 2, "total_step": 10, "tinit": 2, "tfinal": 2}
    model = peft.get_peft_model(model, peft.AdaLoraConfig(target_modules=["q_proj"], **schedule))
    with pytest.raises(InputError, match="PEFT's AdaLoRA"):
        finetune(settings(model_folder, text_file, tmp_path / "run", method="adalora"), model=model)
