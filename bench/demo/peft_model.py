"""The baseline: the same model with PEFT's layers, over bitsandbytes' Linear4bit where quantised; adapters in fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .plan import ALPHA, RANK, Run


def quantise_with_bitsandbytes(
    model: nn.Module, compute_dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> None:
    """Every linear layer but the head becomes a Linear4bit: NF4, double quantisation, products in `compute_dtype`."""
    import bitsandbytes as bnb

    head = model.get_output_embeddings()  # type: ignore[operator]
    for path, layer in [(p, m) for p, m in model.named_modules() if type(m) is nn.Linear and m is not head]:
        quantised = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=compute_dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        quantised.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=quantised
        )
        quantised.bias = layer.bias
        quantised.to(device)
        # an evaluation forward would otherwise repack the weight in place and training after it would lose gradients
        quantised.support_avx512bf16_for_cpu = False
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, quantised)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]


def peft_model(model: nn.Module, run: Run) -> Any:
    """`model` with PEFT's adapters on every linear layer but the head."""
    from peft import LoraConfig, get_peft_model

    if run.quantize:
        quantise_with_bitsandbytes(model)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        use_dora=run.method == "dora",
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
