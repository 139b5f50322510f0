"""Tables that three or more modules share (T5, BART): read, merged in files and in memory, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

import lorafam
from lorafam import AdapterConfig
from lorafam.model.trainable import load_trainable, save_trainable
from tests.model.tiny import disturb, tokens
from tests.scenarios.files import by_peft, close, llama
from tests.scenarios.files import logits as llama_logits


def t5() -> Any:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=50, decoder_start_token_id=0, **sizes))


def bart() -> Any:
    torch.manual_seed(0)
    sides = ("encoder", "decoder")
    sizes = {f"{side}_{name}": size for side in sides for name, size in (("layers", 1), ("attention_heads", 4))}
    sizes |= {f"{side}_ffn_dim": 48 for side in sides}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    return BartForConditionalGeneration(
        BartConfig(vocab_size=50, d_model=32, max_position_embeddings=64, **sizes, **tokens)
    )


MODELS = {"T5": t5, "BART": bart}
QUERIES = ["q", "q_proj"]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(2, 12).unsqueeze(0)
    return model.eval()(input_ids=ids, decoder_input_ids=ids + 3).logits


def saved(name: str, folder: Path, **settings: Any) -> Any:
    """PEFT's outputs with its file in `folder`, the model's beside it."""
    MODELS[name]().save_pretrained(folder / "model")
    theirs = get_peft_model(load(name, folder), LoraConfig(r=4, init_lora_weights=False, **settings))
    disturb(theirs)
    theirs.save_pretrained(folder / "adapter")
    return logits(PeftModel.from_pretrained(load(name, folder), folder / "adapter"))


def load(name: str, folder: Path, which: str = "model") -> Any:
    return type(MODELS[name]()).from_pretrained(folder / which)


READ: dict[str, dict[str, Any]] = {
    "queries": {"target_modules": QUERIES},
    "tokens": {"target_modules": QUERIES, "trainable_token_indices": [3, 4]},
    "tokens of the table": {"target_modules": QUERIES, "trainable_token_indices": {"shared": [3, 4]}},
    "tokens of the table and the head": {
        "target_modules": QUERIES,
        "trainable_token_indices": {"shared": [3, 4], "lm_head": [3, 4]},
    },
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("what", READ)
def test_as_peft_reads_it_and_merged(what: str, name: str, tmp_path: Path) -> None:
    want = saved(name, tmp_path, **READ[what])
    ours = lorafam.load_adapter(load(name, tmp_path), tmp_path / "adapter")
    close(logits(ours), want)
    lorafam.merge_files(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")
    close(logits(load(name, tmp_path, "merged")), want)
    lorafam.merge_and_unload(ours)
    close(logits(ours), want)
    ours.save_pretrained(tmp_path / "unloaded")
    close(logits(load(name, tmp_path, "unloaded")), want)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("table", ["encoder.embed_tokens", "embed_tokens", "lm_head"])
def test_tokens_of_one_of_the_tied_are_refused(table: str, name: str, tmp_path: Path) -> None:
    """They went into all, 0.02 to 0.87 off."""
    saved(name, tmp_path, target_modules=QUERIES, trainable_token_indices={table: [3, 4]})
    with pytest.raises(ValueError, match=r"trainable_token_indices: '.*' is tied to '.*shared', expected the same"):
        lorafam.load_adapter(load(name, tmp_path), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"has rows of '.*' alone, which is tied to '.*shared\.weight'"):
        lorafam.merge_files(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


MERGED_REFUSED: dict[str, dict[str, Any]] = {
    "the table": {"target_modules": ["shared"]},
    "the head": {"target_modules": ["lm_head"]},
    "both sides' tables": {"target_modules": ["embed_tokens"]},
    "the table, whole": {"target_modules": QUERIES, "modules_to_save": ["shared"]},
    "the head, whole": {"target_modules": QUERIES, "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("what", MERGED_REFUSED)
def test_a_configuration_has_no_word_for_parting_one_of_three(what: str, name: str, tmp_path: Path) -> None:
    want = saved(name, tmp_path, **MERGED_REFUSED[what])
    ours = lorafam.load_adapter(load(name, tmp_path), tmp_path / "adapter")
    close(logits(ours), want)
    with pytest.raises(ValueError, match=r"its weight is tied to .* and .*"):
        lorafam.merge_and_unload(ours)
    close(logits(ours), want)
    with pytest.raises(ValueError, match="is tied to several tensors, which changing it would change"):
        lorafam.merge_files(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


TOGETHER: dict[str, dict[str, Any]] = {
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "the table": {"target_modules": ["q_proj", "embed_tokens"]},
    "one rank": {"target_modules": ["q_proj", "embed_tokens"], "r": 1},
    "copies": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5]},
}


def trained(model: Any, steps: int = 3) -> list[float]:
    losses = []
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        loss = model(tokens()).logits.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("which", TOGETHER)
def test_what_a_file_ties_is_trained_as_one(which: str, beside: bool, tmp_path: Path) -> None:
    theirs = get_peft_model(llama(tied=True), LoraConfig(**{"r": 4, "ensure_weight_tying": True, **TOGETHER[which]}))
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    theirs = PeftModel.from_pretrained(llama(tied=True), tmp_path / "theirs", is_trainable=True)
    model = llama(tied=True)
    if beside:
        lorafam.adapt(model, AdapterConfig(r=2, target_modules=["v_proj"]))
    lorafam.load_adapter(model, tmp_path / "theirs", "b")
    lorafam.set_adapter(model, "b")
    lorafam.save_adapter(model, tmp_path / "before")
    save_trainable(model, tmp_path)
    losses = trained(theirs)
    torch.testing.assert_close(trained(model), losses, rtol=1e-4, atol=0)
    for name, wanted in (("after", theirs), ("before", None)):
        if wanted is None:
            # a checkpoint of the same model
            load_trainable(model, tmp_path)
            wanted = PeftModel.from_pretrained(llama(tied=True), tmp_path / "theirs")
        else:
            lorafam.save_adapter(model, tmp_path / name)
        close(by_peft(tmp_path / name, llama(tied=True)), llama_logits(wanted))
    torch.testing.assert_close(trained(model), losses, rtol=1e-4, atol=0)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_table_that_lost_a_part_with_the_head_and_is_not_in_the_file(init: str, tmp_path: Path) -> None:
    """PEFT's model starts as another one: its table is the head's weight."""
    settings: dict[str, Any] = {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True}
    theirs = get_peft_model(llama(tied=True), LoraConfig(r=4, init_lora_weights=init, **settings))
    base = llama_logits(llama(tied=True))
    assert (llama_logits(theirs) - base).norm() > 0.1 * base.norm()
    theirs.save_pretrained(tmp_path)
    model = llama(tied=True)
    with pytest.raises(ValueError, match=r"'lm_head' is tied to 'model\.embed_tokens\.weight', which lost it too"):
        lorafam.load_adapter(model, tmp_path)
    assert torch.equal(llama_logits(model), base)
