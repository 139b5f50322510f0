"""`python -m lorafam.bench.compaction`: a training step and the memory of AdaLoRA before and after its pruned ranks are
removed, side by side: two equal models whose ranks were chosen by the same schedule, one of them compacted, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import nn

import lorafam
from lorafam.backends.numba_cpu.processor import model_name


class Side(NamedTuple):
    """Median milliseconds of a step, ranks over all layers, and bytes of factors, optimiser and allocator."""

    step: float
    ranks: int
    factors: int
    optimizer: int
    allocator: int


class Trained(NamedTuple):
    """A model in training."""

    model: Any
    allocator: lorafam.RankAllocator
    optimizer: torch.optim.Optimizer

    def step(self, number: int, batch: torch.Tensor) -> None:
        loss = self.model(input_ids=batch, labels=batch).loss + self.allocator.penalty()
        loss.backward()
        self.optimizer.step()
        self.allocator.step(number)
        self.optimizer.zero_grad()

    def measured(self, step: float) -> Side:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        kept = self.allocator.state_dict()
        layers = [module for module in self.model.modules() if isinstance(module, lorafam.AdaLoraLinear)]
        return Side(
            step,
            sum(layer.A.shape[0] for layer in layers),
            _bytes(parameters),
            _bytes(states),
            _bytes([*kept["sensitivity"], *kept["uncertainty"]]),
        )


def trained(hidden: int, layers: int, rank: int, target: int) -> Trained:
    """A small language model on NF4 weights, up to where its ranks are chosen for good."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=max(1, hidden // 64),
    )
    model: nn.Module = LlamaForCausalLM(config)
    lorafam.adapt(model, lorafam.AdapterConfig(method="adalora", r=rank, quantize="nf4"))
    allocator = lorafam.RankAllocator(
        model, init_rank=rank, target_rank=target, total_steps=8, warmup_steps=0, final_steps=5, interval=1
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    found = Trained(model, allocator, optimizer)
    for number in range(1, allocator.last_pruning + 1):
        found.step(number, _batch(number, 32))
    return found


def measure(hidden: int, layers: int, rank: int, target: int, tokens: int, steps: int) -> tuple[Side, Side]:
    """Before and after."""
    both = [trained(hidden, layers, rank, target) for _ in range(2)]
    both[1].allocator.compact(both[1].optimizer)
    seconds: list[list[float]] = [[], []]
    for number in range(steps + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter()
            both[which].step(both[which].allocator.last_pruning + 1, _batch(number, tokens))
            if number:
                seconds[which].append(1e3 * (time.perf_counter() - start))
    before, after = (one.measured(statistics.median(times)) for one, times in zip(both, seconds, strict=True))
    return before, after


def table(before: Side, after: Side) -> str:
    """The comparison in Markdown."""
    lines = ["| | before | after | |", "|---|---|---|---|"]
    rows = [("a step", f"{before.step:.0f} ms", f"{after.step:.0f} ms", after.step / before.step)]
    rows.append(("ranks", f"{before.ranks:,}", f"{after.ranks:,}", after.ranks / before.ranks))
    for name in ("factors", "optimizer", "allocator"):
        mine, other = getattr(before, name), getattr(after, name)
        rows.append((f"bytes: {name}", f"{mine:,}", f"{other:,}", other / mine))
    return "\n".join([*lines, *(f"| {name} | {a} | {b} | {ratio:.2f} |" for name, a, b, ratio in rows)])


def _batch(seed: int, tokens: int) -> torch.Tensor:
    return torch.randint(0, 512, (1, tokens), generator=torch.Generator().manual_seed(seed))


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, torch.Tensor))


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name, value in {"hidden": 1024, "layers": 4, "rank": 64, "target": 16, "tokens": 64, "steps": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args(given))
    before, after = measure(**options)
    print(f"{model_name()}, {torch.get_num_threads()} threads; " + ", ".join(f"{k} {v}" for k, v in options.items()))
    print(table(before, after))


if __name__ == "__main__":
    main()
