"""Plain PEFT loads an adapter that lorafam trained and gives the same logits, by the ratio rule.

ours    lorafam's model with the adapter loaded       eager    PeftModel.from_pretrained over the base as PEFT holds it
exact   PeftModel.from_pretrained over the decoded base, everything in fp64 (but what the model itself computes in fp32)
"""

from __future__ import annotations

from pathlib import Path

import torch

from .peft_model import quantise_with_bitsandbytes
from .plan import ALPHA, RANK, Run


@torch.no_grad()
def same_logits(run: Run, model_folder: Path, adapter: Path, chunk: torch.Tensor) -> None:
    """Raises AssertionError with the measured ratios where the logits of `chunk` [length] differ by more than the rule
    allows.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import lorafam
    from tests.tolerances import assert_as_good_as_eager

    def base() -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)

    ids = chunk[None]
    config = lorafam.AdapterConfig(method=run.method, r=RANK, alpha=ALPHA, quantize=run.quantize)
    model = lorafam.load_adapter(lorafam.adapt(base(), config), adapter).eval()
    ours = model(input_ids=ids, use_cache=False).logits
    decoded = _decoded(model) if run.quantize else None
    del model
    peft_base = base()
    if run.quantize:
        quantise_with_bitsandbytes(peft_base)
    eager = PeftModel.from_pretrained(peft_base, adapter).eval()(input_ids=ids, use_cache=False).logits
    del peft_base
    exact_base = base()
    for path, weight in (decoded or {}).items():
        exact_base.get_submodule(path).weight.data = weight
    exact_model = PeftModel.from_pretrained(exact_base, adapter).double().eval()
    exact = exact_model(input_ids=ids, use_cache=False).logits
    assert_as_good_as_eager(ours, eager, exact, name=f"{run.title}, logits")


def _decoded(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Path of each quantised layer in the bare model → the weight it stands for."""
    from lorafam import NF4Linear
    from lorafam.model import adapter_layers

    bases = {path: layer.base_layer for path, layer in adapter_layers(model).items()}
    return {path: base.weight.dequantize(torch.float32) for path, base in bases.items() if isinstance(base, NF4Linear)}
