"""Wavefronts of shared memory for each weight that a product's loop decodes, from launches that ptxsim runs.

Two lengths of K, split alike, differ in turns of the loop alone: what fills the decoder's table and what the epilogue
does cancel. The tensor cores' own reads (wgmma) count without conflicts, which depend on an order that isn't known.
"""

from __future__ import annotations

import torch

from lorafam.backends.triton_gpu.lora_linear import lora_linear
from lorafam.inspect.every_kernel import RANK, four_bit
from lorafam.inspect.traffic import Counted, count

N = 256
# as many programs share a tile of each
LENGTHS = (4096, 8192)


def of_product(target: str, tokens: int) -> float:
    """Of lora_linear in bf16 for so many tokens."""
    runs = [_run(target, tokens, K) for K in LENGTHS]
    if runs[0].launch.grid != runs[1].launch.grid:
        raise ValueError(f"split alike expected: {[run.launch.grid for run in runs]}")
    short, long = (
        sum(one.wavefronts - (one.conflicts if one.opcode.startswith("wgmma") else 0) for one in run.traffic.shared)
        for run in runs
    )
    return (long - short) / (N * (LENGTHS[1] - LENGTHS[0]))


def _run(target: str, tokens: int, K: int) -> Counted:
    x = torch.zeros(tokens, K, dtype=torch.bfloat16)
    P, B_hat = torch.zeros(tokens, RANK), torch.zeros(N, RANK)
    (counted,) = count(target, lambda: lora_linear(x, *four_bit(N, K), P, B_hat, None, None))
    return counted
