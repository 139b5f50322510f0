"""What is read of a model folder before its weights, and how they are put into files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from lorafam.model.weight_files import header, index_text, plan, size_in_bytes, weight_entries


def test_header_says_what_is_there(tmp_path: Path) -> None:
    tensors = {
        "b": torch.ones(3, 2),
        "a": torch.ones(4, dtype=torch.bfloat16),
        "n": torch.tensor(5),
        "e": torch.ones(0),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = header(tmp_path / "x.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].shape == tuple(tensor.shape)
        assert (found[name].numel, found[name].nbytes) == (tensor.numel(), tensor.nbytes)
    assert (found["a"].dtype, found["b"].dtype, found["n"].dtype) == ("BF16", "F32", "I64")


@pytest.mark.parametrize("limit", [1, 40, 100, 10_000])
def test_planned_as_hugging_face_does(limit: int) -> None:
    tensors = {f"t{n}": torch.ones(n % 7 + 1) for n in range(40)}
    theirs = split_torch_state_dict_into_shards(
        tensors, max_shard_size=limit, filename_pattern="model{suffix}.safetensors"
    )
    ours = plan({name: tensor.nbytes for name, tensor in tensors.items()}, limit)
    if limit >= 40:
        assert ours == theirs.filename_to_tensors
    assert [name for names in ours.values() for name in names] == list(tensors)


def test_index_as_transformers_writes_it(tmp_path: Path) -> None:
    shards, sizes = {"one": ["a", "b"], "two": ["c"]}, {"a": 4, "b": 8, "c": 2}
    assert json.loads(index_text(shards, sizes, 7)) == {
        "metadata": {"total_parameters": 7, "total_size": 14},
        "weight_map": {"a": "one", "b": "one", "c": "two"},
    }


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 kb", 1500), ("2MiB", 2**21), ("12", 12), (7, 7), ("3b", 3)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5XB", "-1GB", "0", "1e9", "5 GB 2", 0])
def test_bad_sizes(text: str | int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"max_shard_size: expected a size like 5GB or 500MB, got {text!r}")):
        size_in_bytes(text)


def folder_with(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir()
    for name, content in {
        "config.json": "{}",
        **{name.replace("__", "."): text for name, text in files.items()},
    }.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has neither model.safetensors nor model.safetensors.index.json"),
        ({"config__json": "[1]"}, "is damaged, expected an object"),
        ({"config__json": "{"}, "is damaged, not JSON"),
        (
            {"config__json": '{"quantization_config": {"quant_method": "gptq"}}'},
            r"is quantised \(gptq\), expected dense",
        ),
        ({"x__gguf": "GGUF"}, "has x.gguf, expected model.safetensors or .*merge into the model that it was made from"),
        ({"pytorch_model__bin": ""}, "has pytorch_model.bin, expected model.safetensors"),
        ({"model__safetensors": b"12345"}, "is damaged, not a safetensors file .its header is cut off"),
        ({"model__safetensors": (2).to_bytes(8, "little") + b"{}xx"}, "its size isn't what its header says"),
        ({"model__safetensors": (2).to_bytes(8, "little") + b"[]"}, "is damaged, not a safetensors file"),
        ({"model__safetensors__index__json": "{}"}, "is damaged, it has no weight_map"),
        (
            {"model__safetensors__index__json": '{"weight_map": {"a": "y"}}'},
            "lacks y, which model.safetensors.index.json",
        ),
    ],
)
def test_what_is_refused(files: dict[str, str | bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=f"^model: .*{message}"):
        weight_entries(folder_with(tmp_path / "model", **files))


def test_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model: no such folder"):
        weight_entries(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json, it is no model folder"):
        weight_entries(tmp_path)
    with pytest.raises(ValueError, match="is a GGUF file"):
        weight_entries(tmp_path / "model.gguf")
