"""A model's files merged with an adapter's: the tensors, the report, refusals, and runs that were interrupted."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import lorafam
from lorafam import AdapterConfig
from lorafam.files import LOCK, working_in
from lorafam.model import adapter_layers, merge_files, stored_model
from lorafam.model.merge_state import STATE
from tests.model.on_disk import METHODS, gpt2, write_adapter, write_model
from tests.model.tiny import disturb, tiny_model, tokens

BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "fp32")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "bf16", BF16)


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(model, tmp_path_factory.mktemp("adapter") / "lora")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(tokens()).logits.float()


def by_peft(model: Path, adapter: Path) -> Any:
    """In fp32."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return PeftModel.from_pretrained(base, adapter).merge_and_unload()


@pytest.mark.parametrize("method", METHODS)
def test_equals_pefts_merge(method: str, model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(model, tmp_path / "adapter", method)
    result = merge_files(model, adapter, tmp_path / "out", max_shard_size="30KB")
    assert len(result.files) == 3
    theirs = by_peft(model, adapter)
    found, wanted = tensors(tmp_path / "out"), theirs.state_dict()
    assert found.keys() == wanted.keys()
    changed = {f"{path}.weight" for path in result.report}
    assert len(changed) == 6
    before = tensors(model)
    for name, tensor in found.items():
        # both round to fp32, from fp64 here
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(tensor, before[name]) == (name not in changed), name
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["same", "bf16", "fp16", "fp32"])
@pytest.mark.parametrize("method", ["lora", "dora", "adalora"])
def test_rounded_once(dtype: str, method: str, narrow: Path, tmp_path: Path) -> None:
    adapter = write_adapter(narrow, tmp_path / "adapter", method)
    result = merge_files(narrow, adapter, tmp_path / "out", dtype=dtype)
    assert result.files == ("model.safetensors",)
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    wanted = {"bf16": BF16, "fp16": torch.float16, "fp32": torch.float32}.get(dtype, BF16)
    found = tensors(tmp_path / "out")
    assert {tensor.dtype for tensor in found.values()} == {wanted}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == str(wanted).removeprefix("torch.")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in loaded.parameters()} == {wanted}
    for name, exact in by_peft(narrow, adapter).state_dict().items():
        # rounding the exact value: half a unit of the last place, and PEFT's own error in fp32
        error = (found[name].double() - exact.double()).abs()
        assert (error <= torch.finfo(wanted).eps / 2 * exact.abs() * (1 + 2**-7) + 1e-6).all(), name


def test_the_report(narrow: Path, tmp_path: Path) -> None:
    """Its figures are those of the same layers merged in memory."""
    adapter = write_adapter(narrow, tmp_path / "adapter", lora_alpha=0.02)
    loaded = AutoModelForCausalLM.from_pretrained(narrow, dtype=BF16)
    lorafam.load_adapter(loaded, adapter)
    reports = {path: layer.merge() for path, layer in adapter_layers(loaded).items()}
    threshold = statistics.median(report.lost for report in reports.values())
    want = {path: report._replace(threshold=threshold) for path, report in reports.items()}
    result = merge_files(narrow, adapter, tmp_path / "out", threshold=threshold)
    assert dict(result.report) == want
    assert len(result.report.advised) == 3
    saved = json.loads((tmp_path / "out" / "merge-report.json").read_text())
    assert saved["method"] == "lora"
    assert saved["better_unmerged"] == result.report.advised
    assert saved["layers"] == {path: report.plain() for path, report in want.items()}
    for path, tensor in ((path, loaded.get_submodule(path).base_layer.weight) for path in want):
        assert torch.equal(tensors(tmp_path / "out")[f"{path}.weight"], tensor)


@pytest.mark.parametrize("method", ["lora", "dora", "adalora"])
def test_conv1d(method: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", model=gpt2())
    # attn.c_proj is square: only the other layers tell which way it lies
    targets = ["c_attn", "c_proj"]
    adapter = write_adapter(model, tmp_path / "adapter", method, target_modules=targets, fan_in_fan_out=True)
    merge_files(model, adapter, tmp_path / "out", max_shard_size="20KB")
    theirs = by_peft(model, adapter)
    found = tensors(tmp_path / "out")
    assert "lm_head.weight" not in found
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=1e-5, atol=1e-6)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(theirs), rtol=1e-4, atol=1e-5)
    # the configuration's word counts only where all weights are square
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"]
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": False}))
    merge_files(model, adapter, tmp_path / "out3")
    assert all(torch.equal(tensor, found[name]) for name, tensor in tensors(tmp_path / "out3").items())
    # files of the bare model lack the first part of every name
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    names = {name.removeprefix("transformer."): tensor for name, tensor in tensors(model).items()}
    save_file(names, bare / "model.safetensors", metadata={"format": "pt"})
    merge_files(bare, adapter, tmp_path / "out2")
    for name, tensor in tensors(tmp_path / "out2").items():
        assert torch.equal(tensor, found[f"transformer.{name}"])


def test_square_conv1d_alone(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", model=gpt2())
    adapter = write_adapter(model, tmp_path / "adapter", target_modules=["attn.c_proj"], fan_in_fan_out=True)
    merge_files(model, adapter, tmp_path / "out")
    wanted = by_peft(model, adapter).state_dict()
    for name, tensor in tensors(tmp_path / "out").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)


def test_a_square_layer_lies_as_the_models_class_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untied = gpt2()
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    model = write_model(tmp_path / "model", model=untied)
    # PEFT puts the head's own weight into the adapter's file, and it is that which counts
    both = write_adapter(model, tmp_path / "both", target_modules=["c_attn", "lm_head"])
    values = load_file(both / "adapter_model.safetensors")
    values["base_model.model.lm_head.base_layer.weight"] += 1
    save_file(values, both / "adapter_model.safetensors", metadata={"format": "pt"})
    merge_files(model, both, tmp_path / "out")
    wanted = by_peft(model, both).state_dict()
    for name, tensor in tensors(tmp_path / "out").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)
    square = write_adapter(model, tmp_path / "square", target_modules=["c_attn", "attn.c_proj", "lm_head"])
    merge_files(model, square, tmp_path / "square_out")
    wanted = by_peft(model, square).state_dict()
    for name, tensor in tensors(tmp_path / "square_out").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)
    # a class that transformers doesn't have
    monkeypatch.setattr(stored_model, "loading", lambda *args: None)
    with pytest.raises(ValueError, match=r"'transformer\.h\.0\.attn\.c_proj' is square.* can't be told"):
        merge_files(model, square, tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_bias_of_an_adapter(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", BF16, model=gpt2())
    adapter = write_adapter(model, tmp_path / "adapter", target_modules=["c_attn"], lora_bias=True)
    merge_files(model, adapter, tmp_path / "out", dtype="fp32")
    wanted = by_peft(model, adapter).state_dict()
    for name, tensor in tensors(tmp_path / "out").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)


def test_pruned_ranks(model: Path, tmp_path: Path) -> None:
    ours = lorafam.adapt(tiny_model(), AdapterConfig(method="adalora", r=4, target_modules=["q_proj", "up_proj"]))
    disturb(ours)
    for index, layer in enumerate(adapter_layers(ours).values()):
        layer.active.kept_ranks = [rank < index for rank in range(4)]
        with torch.no_grad():
            layer.E[index:] = 0
    lorafam.save_adapter(ours, tmp_path / "adapter")
    result = merge_files(model, tmp_path / "adapter", tmp_path / "out")
    first = next(iter(adapter_layers(ours)))
    assert result.report[first].relative_update == result.report[first].update_output_error == 0
    assert torch.equal(tensors(tmp_path / "out")[f"{first}.weight"], tensors(model)[f"{first}.weight"])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(ours), rtol=1e-4, atol=1e-5)


def test_a_zero_row(tmp_path: Path) -> None:
    zeroed = tiny_model()
    with torch.no_grad():
        zeroed.model.layers[0].self_attn.q_proj.weight[3] = 0
    model = write_model(tmp_path / "model", model=zeroed)
    adapter = write_adapter(model, tmp_path / "adapter", "dora")
    file = adapter / "adapter_model.safetensors"
    values = load_file(file)
    values["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"][3] = 0
    save_file(values, file, metadata={"format": "pt"})
    merge_files(model, adapter, tmp_path / "out")
    row = tensors(tmp_path / "out")["model.layers.0.self_attn.q_proj.weight"][3]
    assert torch.equal(row, torch.zeros(32))


def test_inputs_are_left_alone_and_other_files_copied(model: Path, adapter: Path, tmp_path: Path) -> None:
    before = contents(model), contents(adapter)
    merge_files(model, adapter, tmp_path / "out", max_shard_size="30KB")
    assert (contents(model), contents(adapter)) == before
    others = {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"}
    index = "model.safetensors.index.json"
    assert others == {"config.json", "generation_config.json", "tokenizer.json", "merge-report.json", index}
    assert (tmp_path / "out" / "config.json").read_bytes() == (model / "config.json").read_bytes()


def test_no_more_than_a_shard_is_held(
    model: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    def watched(given: dict[str, torch.Tensor], path: Path, **more: Any) -> None:
        held.append(sum(tensor.nbytes for tensor in given.values()))
        save_file(given, path, **more)

    monkeypatch.setattr(sys.modules["lorafam.model.merged_tensors"], "save_file", watched)
    result = merge_files(model, adapter, tmp_path / "out", max_shard_size="30KB")
    assert len(held) == len(result.files)
    assert max(held) <= 30_000
    assert sum(held) == result.nbytes


# --- interruptions


class Killed(BaseException):
    pass


def interrupted(at: int, run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, *, after: bool) -> bool:
    """Runs until the rename number `at`, before or after it is done; whether there were so many."""
    count = 0

    def replace(source: Any, target: Any) -> None:
        nonlocal count
        count += 1
        if count == at and not after:
            raise Killed
        real(source, target)
        if count == at:
            raise Killed

    real = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        try:
            run()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("after", [False, True])
def test_interrupted_anywhere_ends_in_the_same_bytes(
    after: bool, model: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_files(model, adapter, tmp_path / "whole", dtype="bf16", max_shard_size="10KB")
    want = contents(tmp_path / "whole")
    points = 0
    for at in range(1, 100):
        out = tmp_path / f"out{at}"
        run = lambda out=out: merge_files(model, adapter, out, dtype="bf16", max_shard_size="10KB")  # noqa: E731
        if not interrupted(at, run, monkeypatch, after=after):
            break
        points += 1
        if not (out / STATE).exists():
            # before the first state is there nothing is, and the same command starts anew
            result = run()
        else:
            with pytest.raises(ValueError, match=r"has an unfinished merge; resume it \(--resume\)"):
                run()
            # as safetensors leaves it where it is killed while it writes
            (out / ".tmpA1b2C3").write_text("half a shard")
            result = merge_files(None, None, out, resume=True)
        assert contents(out) == want, at
        assert len(result.report) == 6
    assert points > 10


def test_finished_shards_arent_written_again(
    model: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Any:
        return merge_files(model, adapter, tmp_path / "out", max_shard_size="20KB")

    assert interrupted(6, run, monkeypatch, after=True)
    there = sorted((tmp_path / "out").glob("model-*"))
    written = {path.name: path.stat().st_mtime_ns for path in there[:-1]}
    assert len(written) >= 2
    merge_files(None, None, tmp_path / "out", resume=True)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in written} == written


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "fp32"}, "dtype: the merge in .* has 'bf16', it can't go on with 'fp32'"),
        ({"model": "elsewhere"}, "model: the merge in .* it can't go on with 'elsewhere'"),
        ({"max_shard_size": "1MB"}, "max_shard_size: the merge in .* has 20000, it can't go on with 1000000"),
    ],
)
def test_other_settings_on_resume(
    settings: dict[str, Any], message: str, model: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Any:
        return merge_files(model, adapter, tmp_path / "out", dtype="bf16", max_shard_size="20KB")

    assert interrupted(4, run, monkeypatch, after=True)
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        merge_files(**{"model": None, "adapter": None, **settings}, output=tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("what", ["model", "adapter"])
def test_changed_inputs_on_resume(
    what: str, model: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = {
        "model": shutil.copytree(model, tmp_path / "model"),
        "adapter": shutil.copytree(adapter, tmp_path / "adapter"),
    }

    def run() -> Any:
        return merge_files(**mine, output=tmp_path / "out", max_shard_size="20KB")

    assert interrupted(4, run, monkeypatch, after=True)
    file = next(iter(sorted(mine[what].glob("*.safetensors"))))
    values = load_file(file)
    save_file({name: tensor + 1 for name, tensor in values.items()}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model, adapter: they have changed since the merge in .* began"):
        merge_files(None, None, tmp_path / "out", resume=True)


# --- refusals


def changed_adapter(
    source: Path, folder: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]
) -> Path:
    config, values = (
        json.loads((source / "adapter_config.json").read_text()),
        load_file(source / "adapter_model.safetensors"),
    )
    change(config, values)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(values, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


def nan(config: dict[str, Any], values: dict[str, torch.Tensor]) -> None:
    values[A][0, 0] = float("nan")


def renamed(config: dict[str, Any], values: dict[str, torch.Tensor]) -> None:
    values[A.replace("q_proj", "q_prj")], values[B.replace("q_proj", "q_prj")] = values.pop(A), values.pop(B)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan, r"q_proj\.lora_A\.weight' has NaN or inf"),
        (renamed, r"adapter: the model's files have no '.*q_prj\.weight', which it adapts \(the nearest is '.*q_proj"),
        (lambda c, t: t.pop(B), r"adapter_model\.safetensors: lacks '.*q_proj\.lora_B\.weight'"),
        (
            lambda c, t: t.update({A: torch.ones(3, 32)}),
            r"q_proj\.lora_A\.weight' has shape \[3, 32\], expected \[4, 32\]",
        ),
        (lambda c, t: t.update({B: torch.ones(31, 4)}), r"factors .* the model's '.*q_proj\.weight' is \[32, 32\]"),
        (lambda c, t: t.update({"other": torch.ones(1)}), "'other' is no tensor of an adapter"),
        (lambda c, t: t.update({B.replace("lora_B.weight", "lora_B.bias"): torch.ones(32)}), "has a bias|no place for"),
        (
            lambda c, t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 50)}),
            r"lacks 'base_model\.model\.model\.embed_tokens\.lora_B\.weight'",
        ),
        (
            lambda c, t: t.update({A.replace("lora_A", "base_layer"): torch.ones(3, 32)}),
            r"q_proj\.base_layer\.weight' has shape \[3, 32\], the model's .* is \[32, 32\]",
        ),
        (
            lambda c, t: t.update({"base_model.model.lm_head.base_layer.weight": torch.ones(3, 32)}),
            r"lm_head\.base_layer\.weight' has shape \[3, 32\], the model's 'lm_head\.weight' is \[50, 32\]",
        ),
        (lambda c, t: c.update(peft_type="IA3"), "expected peft_type ADALORA or LORA or VERA, got 'IA3'"),
        (lambda c, t: c.update(modules_to_save=["lm_head"]), "modules_to_save = .*has none of them"),
        (lambda c, t: c.update(lora_alpha=-1), "alpha: expected a number that isn't negative, got -1"),
        (lambda c, t: t.clear(), "expected an adapter's tensors, got none"),
    ],
)
def test_adapters_that_dont_fit(change: Any, message: str, model: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        merge_files(model, changed_adapter(adapter, tmp_path / "adapter", change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tied_heads_of_an_unknown_class_are_refused(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_model, "loading", lambda *args: None)
    head = lambda c, t: t.update(  # noqa: E731
        {
            "base_model.model.lm_head.lora_A.weight": torch.ones(4, 32),
            "base_model.model.lm_head.lora_B.weight": torch.ones(50, 4),
        }
    )
    changed = changed_adapter(adapter, tmp_path / "adapter", head)
    tied = tiny_model()
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    with pytest.raises(ValueError, match=r"no 'lm_head\.weight', which it adapts; is its weight tied to another\?"):
        merge_files(write_model(tmp_path / "tied", model=tied), changed, tmp_path / "out")
    kept = write_model(tmp_path / "kept")
    config = json.loads((kept / "config.json").read_text())
    (kept / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(
        ValueError, match=r"'lm_head.weight' is tied to the embeddings \(tie_word_embeddings in config.json\)"
    ):
        merge_files(kept, changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_out_of_range_are_refused(adapter: Path, tmp_path: Path) -> None:
    large = tiny_model()
    with torch.no_grad():
        large.model.norm.weight[0] = 1e6
    model = write_model(tmp_path / "model", model=large)
    with pytest.raises(ValueError, match=r"dtype: model\.norm\.weight has values that fp16 can't hold"):
        merge_files(model, adapter, tmp_path / "out", dtype="fp16")
    assert merge_files(model, adapter, tmp_path / "out2", dtype="bf16").files


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype: expected one of 'same', 'bf16', 'fp16', 'fp32', got 'int8'"),
        ({"max_shard_size": "big"}, "max_shard_size: expected a size like 5GB or 500MB, got 'big'"),
        ({"threshold": -1.0}, "threshold: expected a share"),
        ({"model": None}, "model: missing, expected a folder"),
        ({"adapter": None}, "adapter: missing, expected a folder"),
        ({"adapter": "nowhere"}, "adapter: no such folder: nowhere"),
        ({"resume": True}, "has no unfinished merge to resume"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str, model: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        merge_files(**{"model": model, "adapter": adapter, "output": tmp_path / "out", **settings})
    assert not (tmp_path / "out").exists()


def test_outputs_that_are_there(model: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"output: .* isn't empty"):
        merge_files(model, adapter, model)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output: expected a folder, .* is a file"):
        merge_files(model, adapter, tmp_path / "file")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / STATE).write_text("{}")
    with pytest.raises(ValueError, match=r"merge-state\.json is damaged"):
        merge_files(None, None, tmp_path / "damaged", resume=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ValueError, match=r"needs 0\.00 GB, 0\.00 GB are free"):
        merge_files(model, adapter, tmp_path / "full")
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    assert merge_files(model, adapter, tmp_path / "empty").files


def test_two_merges_are_not_in_one_folder(model: Path, adapter: Path, tmp_path: Path) -> None:
    with (
        working_in(tmp_path / "out"),
        pytest.raises(ValueError, match=r"^output: another merge is at work in "),
    ):
        merge_files(model, adapter, tmp_path / "out")
    merge_files(model, adapter, tmp_path / "out")
    assert LOCK not in os.listdir(tmp_path / "out")
