"""`python -m lorafam.bench.grouped`: q, k and v of one x together (`F.grouped_lora_linear`) and one by one, in turn.

Of a Llama-3-8B unless asked for other sizes: NF4 with double quantisation, rank 16, bf16 on a GPU, fp32 on a CPU.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch

from lorafam import functional as F
from lorafam import quantize_nf4
from lorafam.backends.numba_cpu.processor import model_name

from .cpu.interleaved import medians
from .gpu_clock import NOTE, GpuClock

RANK = 16


def group(rows: list[int], columns: int, tokens: int, device: str) -> dict[str, Any]:
    """Arguments of `F.grouped_lora_linear`, the factors with gradients."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device)

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return {
        "x": random(tokens, columns, scale=1.0).to(dtype).requires_grad_(),
        "weights": [quantize_nf4(random(N, columns, scale=columns**-0.5)) for N in rows],
        "As": [random(RANK, columns, scale=columns**-0.5).requires_grad_() for _ in rows],
        "Bs": [random(N, RANK, scale=0.1).requires_grad_() for N in rows],
        "scalings": [2.0] * len(rows),
    }


def one_by_one(x: torch.Tensor, weights: Any, As: Any, Bs: Any, scalings: Any) -> list[torch.Tensor]:
    return [F.lora_linear(x, *each) for each in zip(weights, As, Bs, scalings, strict=True)]


def calls(given: dict[str, Any], direction: str) -> dict[str, Callable[[], Any]]:
    """Those that are compared, by name."""
    leaves = [given["x"], *given["As"], *given["Bs"]]

    def of(forward: Callable[..., Any]) -> Callable[[], Any]:
        if direction == "train":
            return lambda: torch.autograd.grad([y.sum() for y in forward(**given)], leaves)
        return torch.no_grad()(functools.partial(forward, **given))

    return {"together": of(F.grouped_lora_linear), "one by one": of(one_by_one)}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[4096, 1024, 1024])
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 16, 128])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each comparison")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(given)
    clock = GpuClock() if options.device == "cuda" else None
    name = torch.cuda.get_device_name() if clock else f"{model_name()}, {torch.get_num_threads()} threads"
    print(f"{name}; rows {', '.join(map(str, options.rows))}, columns {options.columns}")
    if clock:
        print(NOTE)
    print("| tokens | | together | one by one | |\n|---|---|---|---|---|")
    for tokens in options.tokens:
        made = group(options.rows, options.columns, tokens, options.device)
        for direction in ("forward", "train"):
            together, apart = medians(calls(made, direction), options.seconds, clock).values()
            figures = f"{1e6 * together:.0f} µs | {1e6 * apart:.0f} µs | {apart / together:.2f}x"
            print(f"| {tokens} | {direction} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
