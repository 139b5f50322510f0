"""Every kernel in every shipped configuration: calls of the ops that compile them, and the dump of what came out.

The calls go the way a user's do, through the ops' implementations, so nothing is declared twice.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from subprocess import SubprocessError
from typing import Any, NamedTuple

import torch

from ..backends.told import told
from ..backends.triton_gpu.launch import Launch, compiled_only
from ..backends.triton_gpu.launch_limits import refusal
from ..backends.triton_gpu.lora_linear import FEW
from ..backends.triton_gpu.staged import product
from ..files import write_json
from ..kernels.paths import CUBLAS, TRITON
from ..ops.by_storage import NESTED_BLOCK_SIZE, Storage, joined
from .instructions import global_accesses, per_weight
from .machine_code import disassembly, machine_code

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# one number of tokens for each way the launch table goes
TOKENS = (8, 16, 64, 128, 512)
N, K, RANK = 256, 256, 16
# as long as a large model's, where a call is only compiled: it decides how many blocks' scales are decoded at a time
LONG_K = 16384
# K not a multiple of the block
K_TAIL = 240

Tensor = torch.Tensor
Row = dict[str, Any]


class Call(NamedTuple):
    """One call of an op: its name, the dtype it is made for, and the call."""

    op: str
    dtype: torch.dtype
    run: Callable[[], object]


def calls(N: int = N, K: int = K) -> Iterator[Call]:
    """Calls that between them launch every kernel in every shipped configuration and specialisation.

    W is [N, K]: of any size for that, as long as N is a multiple of 16 and K of the block.
    """
    from ..backends.triton_gpu import (
        adalora_importance,
        adalora_penalty,
        adalora_penalty_grad,
        adalora_scores,
        dequantize_4bit,
        dropout,
        lora_factors_grad,
        lora_linear,
        lora_linear_grad,
        lora_linear_group,
        lora_project,
        quantize_4bit,
        quantize_absmax,
        row_norm,
        squared_row_norm,
    )

    seed, p = torch.tensor(1), 0.1
    A, B_hat, vector = torch.zeros(RANK, K), torch.zeros(N, RANK), torch.ones(N)
    for dtype in DTYPES:
        weights = [(torch.zeros(N, K, dtype=dtype), [], []), four_bit(N, K)]

        def call(op: Any, *arguments: Any, dtype: torch.dtype = dtype) -> Call:
            return Call(op.__name__, dtype, lambda: op(*arguments))

        for tokens in TOKENS:
            x, grad_y = torch.zeros(tokens, K, dtype=dtype), torch.zeros(tokens, N, dtype=dtype)
            P = torch.zeros(tokens, RANK)
            for weight in weights:
                yield call(lora_linear, x, *weight, P, B_hat, vector, vector)
                yield call(lora_linear, x, *weight, P, B_hat, None, None)
                yield call(lora_linear_grad, grad_y, *weight, vector, P, A, seed, p)
                yield call(lora_linear_grad, grad_y, *weight, None, P, A, None, 0.0)
            if tokens <= FEW and dtype != torch.float32:
                for members, bias in ((3, None), (2, vector)):
                    group = joined([four_bit(N, K) for _ in range(members)])
                    yield call(lora_linear_group, x, *group, [P] * members, [B_hat] * members, [bias] * members)
            tail = torch.zeros(tokens, K_TAIL, dtype=dtype)
            yield call(lora_linear, tail, *four_bit(N, K_TAIL), P, B_hat, None, None)
        for by in (CUBLAS, TRITON) if dtype != torch.float32 else ():
            yield Call("staged", dtype, functools.partial(_staged, dtype, by))
        yield call(lora_project, x, A, seed, p)
        yield call(lora_project, x, A, None, 0.0)
        yield call(lora_factors_grad, grad_y, x, P, B_hat, vector, grad_y, vector, vector, seed, p, True)
        yield call(lora_factors_grad, grad_y, x, P, B_hat, None, None, None, None, None, 0.0, False)
        yield call(dropout, x, seed, p)
        yield call(dequantize_4bit, *weights[1], dtype)
        yield call(quantize_4bit, weights[0][0], 64, "nf4")
        for weight in weights:
            yield call(row_norm, *weight, A, B_hat, vector)
            yield call(squared_row_norm, *weight)
    factors = [A, B_hat]
    yield Call("quantize_absmax", torch.float32, lambda: quantize_absmax(torch.ones(N), torch.arange(256.0)))
    yield Call(
        "adalora_importance",
        torch.float32,
        lambda: adalora_importance(factors, factors, [A.clone(), B_hat.clone()], [A.clone(), B_hat.clone()], 0.9, 0.9),
    )
    yield Call("adalora_scores", torch.float32, lambda: adalora_scores(factors, factors, [0, 1]))
    yield Call("adalora_penalty", torch.float32, lambda: adalora_penalty(factors, [0, 1]))
    yield Call(
        "adalora_penalty_grad",
        torch.float32,
        lambda: adalora_penalty_grad(factors, [0, 1], torch.ones(2), torch.ones(2 * RANK * RANK), torch.ones(2)),
    )


def _staged(dtype: torch.dtype, by: str) -> None:
    """The dense products of the staged path, forward and backward."""
    x, weight = torch.zeros(256, K, dtype=dtype), torch.zeros(N, K, dtype=dtype)
    P, factor, bias = torch.zeros(256, RANK), torch.zeros(RANK, N), torch.zeros(N)
    product(x, weight, P, factor, bias, None, 0.0, by, backward=False)
    product(x, weight, P, factor, None, torch.tensor(1), 0.1, by, backward=True)


def four_bit(rows: int, columns: int) -> Storage:
    """An NF4 weight with double quantisation."""
    blocks = -(-rows * columns // 64)
    scales = [
        # neighbours differ: where they are run, look-ups go all over the table
        (torch.arange(blocks) * 101 % 256).to(torch.uint8),
        torch.ones(-(-blocks // NESTED_BLOCK_SIZE)),
        torch.ones(256),
        torch.ones(()),
    ]
    codes = torch.zeros(rows * columns // 2, dtype=torch.uint8)
    return Storage(codes, scales, [rows, columns, 64, 0, NESTED_BLOCK_SIZE])


def dump_kernels(folder: Path, architectures: tuple[str, ...] = ARCHITECTURES, workers: int | None = None) -> list[Row]:
    """Compiles everything and writes assembly, binaries and `kernels.json`; returns its rows.

    A call that doesn't compile is a row too, of op, target, dtype and error: `failures`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    # a process for each architecture: the compiler holds the interpreter's lock
    with ProcessPoolExecutor(workers or os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(_dump_one, [folder] * len(architectures), architectures):
            rows += found
    write_json(folder / "kernels.json", rows)
    return rows


def failures(rows: list[Row]) -> list[str]:
    """What didn't compile, a line each; the other rows are of kernels."""
    return [f"{row['op']} for {row['target']}, {row['dtype']}: {row['error']}" for row in rows if "error" in row]


def compiled(rows: list[Row]) -> list[Row]:
    """The rows of kernels."""
    return [row for row in rows if "error" not in row]


def _dump_one(folder: Path, architecture: str) -> list[Row]:
    place = folder / architecture
    place.mkdir(exist_ok=True)
    rows: dict[Any, Row] = {}
    keep = []
    for op, dtype, run in calls(K=LONG_K):
        described = {"op": op, "target": architecture, "dtype": str(dtype).removeprefix("torch.")}
        with compiled_only(architecture) as launches:
            try:
                run()
            except Exception as error:  # whatever a compiler raises; the other calls go on
                row = {**described, "error": told(error)}
                rows[tuple(row.values())] = row
        for launch in launches:
            if id(launch.kernel) in rows:
                continue
            keep.append(launch.kernel)
            name = f"{launch.name.removesuffix('_kernel')}-{len(rows):03d}"
            try:
                found = _row(launch, architecture, place / name)
            except (ValueError, RuntimeError, SubprocessError) as error:  # its code isn't as it can be read
                found = {"error": f"{launch.name}: {told(error)}"}
            rows[id(launch.kernel)] = {**described, **found}
    return list(rows.values())


def configuration(kernel: Any) -> dict[str, Any]:
    """Block sizes and other constexprs of a compiled kernel, its warps and its stages."""
    constants = {kernel.src.fn.arg_names[at[0]]: value for at, value in kernel.src.constants.items()}
    config = {name: value for name, value in constants.items() if name.isupper() and name != "TARGET"}
    return {**config, "num_warps": kernel.metadata.num_warps, "num_stages": kernel.metadata.num_stages}


def _row(launch: Launch, architecture: str, path: Path) -> Row:
    """What isn't told by the call."""
    kernel = launch.kernel
    assembly, binary = ("ptx", "cubin") if "cubin" in kernel.asm else ("amdgcn", "hsaco")
    path.with_suffix(f".{assembly}").write_text(kernel.asm[assembly], encoding="utf-8")
    path.with_suffix(f".{binary}").write_bytes(kernel.asm[binary])
    relative = path.relative_to(path.parent.parent)
    code = machine_code(kernel)
    return {
        "kernel": launch.name,
        "file": Path(kernel.src.fn.fn.__code__.co_filename).name,
        "config": configuration(kernel),
        "grid": list(launch.grid),
        "refused": refusal(kernel, launch.grid, code.registers),
        "binary": str(relative.with_suffix(f".{binary}")),
        "ptx": str(relative.with_suffix(f".{assembly}")),
        **code._asdict(),
        **_instructions(kernel, architecture),
    }


def _instructions(kernel: Any, architecture: str) -> dict[str, Any]:
    """`per_weight` (`instructions.PerWeight`, None where nothing is decoded by look-ups) and `global_accesses` by
    opcode; None on AMD.
    """
    if "cubin" not in kernel.asm:
        return {"per_weight": None, "global_accesses": None}
    listing = disassembly(kernel)
    found = per_weight(listing, kernel.asm["ptx"], configuration(kernel), architecture)
    return {
        "per_weight": None if found is None else found._asdict(),
        "global_accesses": global_accesses(listing),
    }
