"""LoRA+ (arXiv 2402.12354): B learns `ratio` times as fast as A. PEFT's grouping, for lorafam's layers and PEFT's."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config import check_weight


def lora_plus_groups(
    model: nn.Module, lr: float, ratio: float, weight_decay: float = 0.0, *, embedding_lr: float = 1e-6
) -> list[dict[str, Any]]:
    """Parameter groups for any optimiser, of all that require gradients, as `peft.optimizers.create_loraplus_optimizer`
    makes them; empty ones are left out.

    lr             A, E and whatever is left
    lr · ratio     B and all vectors (DoRA's magnitude, biases); biases and layer norms without weight decay
    embedding_lr   both factors of PEFT's embedding layers

    Raises ValueError for a model without a factor B that is trained, or for a number that can't be.
    """
    for name, value in (("lr", lr), ("ratio", ratio), ("weight_decay", weight_decay), ("embedding_lr", embedding_lr)):
        check_weight(name, value)
    if ratio == 0:
        raise ValueError("ratio: expected a positive number, got 0")
    normed = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
        for parameter in module.parameters()
    }
    slow, embedding, fast, undecayed = [], [], [], []
    has_b = False
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_b = "lora_B" in name or name.rpartition(".")[2] == "B"
        has_b |= is_b
        if "lora_embedding_" in name:
            embedding.append(parameter)
        elif not (is_b or parameter.ndim == 1):
            slow.append(parameter)
        elif "bias" in name or id(parameter) in normed:
            undecayed.append(parameter)
        else:
            fast.append(parameter)
    if not (has_b or embedding):
        raise ValueError("model: expected adapters with a factor B that requires gradients, it has none")
    groups = [
        {"params": slow, "lr": lr, "weight_decay": weight_decay},
        {"params": embedding, "lr": embedding_lr, "weight_decay": weight_decay},
        {"params": fast, "lr": lr * ratio, "weight_decay": weight_decay},
        {"params": undecayed, "lr": lr * ratio, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
