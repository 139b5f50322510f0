"""A real training step: a Llama of 8 layers of 4096 with random weights, 2048 tokens, as TRL's SFTConfig trains by
default: bf16 autocast, gradient checkpointing, AdamW, an adapter on every linear layer.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Iterator
from typing import Any

from ..cases import Case, Context, LeftOutError
from ..device import device

LAYERS, HIDDEN, INTERMEDIATE, HEADS, KEY_HEADS, VOCABULARY = 8, 4096, 14336, 32, 8, 32000
TOKENS, RANK = 2048, 16
WARM, TIMED = 3, 10
WHO = {
    "lorafam": ("lorafam, NF4", ()),
    "accelerated": ("PEFT + bitsandbytes, accelerated", ("peft", "bitsandbytes")),
    "peft": ("PEFT + bitsandbytes", ("peft", "bitsandbytes")),
}


def cases(context: Context, methods: tuple[str, ...] = ("lora", "dora")) -> Iterator[Case]:
    for method in methods:
        for who in WHO:
            yield Case(f"{method} {who}", functools.partial(stepped, who, method), expects=60, limit=300)


def stepped(who: str, method: str) -> dict[str, Any]:
    """Tokens a second, the seconds of a step, its peak memory, and the loss, which must be finite."""
    import torch

    title, needed = WHO[who]
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise LeftOutError(f"not installed: {', '.join(missing)}")
    gpu = device()
    model = adapted(plain_model(), who, method)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    tokens = min(TOKENS, gpu.largest or TOKENS)
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0)).to(gpu.where)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-5)
    losses: list[torch.Tensor] = []

    def step() -> None:
        with torch.autocast(gpu.where.type, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    warm, timed = (1, 1) if gpu.largest else (WARM, TIMED)
    for _ in range(warm):
        step()
    gpu.synchronize()
    start = time.perf_counter()
    for _ in range(timed):
        step()
    gpu.synchronize()
    seconds = (time.perf_counter() - start) / timed
    peak = gpu.peak_bytes(step)
    last = float(losses[-1])
    if not last < float("inf"):
        raise RuntimeError(f"the loss is {last} after {len(losses)} steps")
    return {
        "title": f"{title}, {method}", "tokens_a_second": tokens / seconds, "step_seconds": seconds, "peak_bytes": peak,
        "first_loss": float(losses[0]), "loss": last, "clocks": gpu.clocks(),
    }  # fmt: skip


def plain_model() -> Any:
    """In bf16, with random weights, on the GPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    small = device().largest
    config = LlamaConfig(
        num_hidden_layers=2 if small else LAYERS,
        hidden_size=small or HIDDEN,
        intermediate_size=small or INTERMEDIATE,
        num_attention_heads=2 if small else HEADS,
        num_key_value_heads=2 if small else KEY_HEADS,
        vocab_size=small or VOCABULARY,
        max_position_embeddings=TOKENS,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device().where):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def adapted(model: Any, who: str, method: str) -> Any:
    """With NF4 weights and an adapter on every linear layer but the head."""
    import torch

    import lorafam

    if who == "lorafam":
        return lorafam.adapt(model, lorafam.AdapterConfig(method=method, r=RANK, alpha=2 * RANK, quantize="nf4"))
    from peft import LoraConfig, get_peft_model

    from ...demo.peft_model import quantise_with_bitsandbytes

    quantise_with_bitsandbytes(model, torch.bfloat16, device().where)
    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, use_dora=method == "dora", target_modules="all-linear", task_type="CAUSAL_LM"
    )
    found = get_peft_model(model, config)
    if who == "accelerated":
        lorafam.accelerate(found)
    return found
