"""Plain PEFT loads an adapter that lorafam trained and gives the same logits, by the ratio rule.

ours    lorafam's model with the adapter loaded       eager    PeftModel.from_pretrained over the base as PEFT holds it
exact   PeftModel.from_pretrained over the decoded base, everything in fp64 (but what the model itself computes in fp32)

Over the whole held-out text: at a few tokens in a thousand the model amplifies any rounding tenfold, and all logits of
a token share that. One chunk would compare two draws; so there are many tokens, and every `VOCABULARY_STEP`-th logit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .peft_model import quantise_with_bitsandbytes
from .plan import ALPHA, RANK, Run

VOCABULARY_STEP = 64
BATCH = 8


@torch.no_grad()
def same_logits(run: Run, model_folder: Path, adapter: Path, chunks: torch.Tensor) -> None:
    """Raises AssertionError with the measured ratios where the logits of `chunks` [k, length] differ by more than the
    rule allows.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import lorafam
    from lorafam.reference.ratio_rule import assert_as_good_as_eager

    def base() -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)

    config = lorafam.AdapterConfig(method=run.method, r=RANK, alpha=ALPHA, quantize=run.quantize)
    model = lorafam.load_adapter(lorafam.adapt(base(), config), adapter).eval()
    ours = _logits(model, chunks)
    decoded = _decoded(model) if run.quantize else None
    del model
    peft_base = base()
    if run.quantize:
        quantise_with_bitsandbytes(peft_base)
    eager = _logits(PeftModel.from_pretrained(peft_base, adapter).eval().get_base_model(), chunks)
    del peft_base
    exact_base = base()
    for path, weight in (decoded or {}).items():
        exact_base.get_submodule(path).weight.data = weight
    exact_model = PeftModel.from_pretrained(exact_base, adapter).double().eval()
    exact = _logits(exact_model.get_base_model(), chunks)
    assert_as_good_as_eager(ours, eager, exact, name=f"{run.title}, logits")


def _logits(model: Any, chunks: torch.Tensor) -> torch.Tensor:
    """Every `VOCABULARY_STEP`-th logit of every token: [k, length, vocabulary / step]."""
    head = model.get_output_embeddings().weight[::VOCABULARY_STEP]
    return torch.cat(
        [model.model(input_ids=batch, use_cache=False).last_hidden_state @ head.T for batch in chunks.split(BATCH)]
    )


def _decoded(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Path of each quantised layer in the bare model → the weight it stands for."""
    from lorafam import NF4Linear
    from lorafam.model import adapter_layers

    bases = {path: layer.base_layer for path, layer in adapter_layers(model).items()}
    return {path: base.weight.dequantize(torch.float32) for path, base in bases.items() if isinstance(base, NF4Linear)}
