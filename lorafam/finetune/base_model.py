"""A causal language model and its tokenizer from a folder, the hub or a GGUF file, through transformers."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from .errors import InputError, one_line

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_model_path(model: str) -> None:
    """Raises InputError where `model` is neither a model folder, a GGUF file nor possibly a name on the hub."""
    path = Path(model)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"model: no such file: {model}")
        if path.open("rb").read(4) != b"GGUF":
            raise InputError(f"model: {model} is not a GGUF file (its first bytes aren't GGUF)")
        if importlib.util.find_spec("gguf") is None:
            raise InputError("model: reading a GGUF file needs the package gguf")
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"model: {model} has no config.json, it is no model folder")
    elif path.exists():
        raise InputError(f"model: expected a model folder or a .gguf file, got the file {model}")
    elif not _HUB_NAME.fullmatch(model) or model.startswith("."):
        raise InputError(f"model: no such folder: {model}")


def load_tokenizer(model: str) -> Any:
    """Raises InputError when there is none or it can't be read."""
    source, options = _source(model)
    return _load("tokenizer", model, transformers.AutoTokenizer, source, options)


def load_base_model(model: str, dtype: str) -> Any:
    """The model on the CPU, its weights in `dtype`. A GGUF file's weights are decoded. Raises InputError when it
    can't be read.
    """
    source, options = _source(model)
    if "gguf_file" in options and hasattr(transformers, "GgufConfig"):
        # newer transformers may keep the weights in their GGUF blocks, which can't be trained on
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    options["dtype"] = getattr(torch, dtype)
    return _load("model", model, transformers.AutoModelForCausalLM, source, options)


def check_length(model: Any, length: int) -> None:
    """Raises InputError where `length` tokens are more than the model has positions for."""
    config = getattr(model, "config", None)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
    if limit is not None and length > limit:
        raise InputError(f"sequence_length: chunks have {length} tokens with <bos>, the model takes at most {limit}")


def _source(model: str) -> tuple[str, dict[str, Any]]:
    path = Path(model)
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    return model, {}


def _load(what: str, model: str, cls: Any, source: str, options: dict[str, Any]) -> Any:
    try:
        return cls.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if os.path.exists(model):
            raise InputError(f"model: the {what} in {model} can't be read: {one_line(error)}") from error
        raise InputError(
            f"model: no folder here is called {model}, and the hub gave no {what}: {one_line(error)}"
        ) from error
