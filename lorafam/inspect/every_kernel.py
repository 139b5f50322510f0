"""Every kernel in every shipped configuration: calls of the ops that compile them, and the dump of what came out.

The calls go the way a user's do, through the ops' implementations, so nothing is declared twice.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Collection, Iterator
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
from ..ops.by_storage import NESTED_BLOCK_SIZE, Storage, dense_storage
from ..ops.samples import OPTIONAL, Sample
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
    dense = {dtype: dense_storage(torch.zeros(N, K, dtype=dtype)) for dtype in DTYPES}
    for dtype in DTYPES:
        weights = [dense[dtype], four_bit(N, K)]
        for tokens in TOKENS:
            for weight in weights:
                yield _call("lora_linear", weight, dtype, tokens)
                yield _call("lora_linear", weight, dtype, tokens, ("update",))
                yield _call("lora_linear_grad", weight, dtype, tokens)
                yield _call("lora_linear_grad", weight, dtype, tokens, ("update",))
            if tokens <= FEW and dtype != torch.float32:
                for biased in ((False,) * 3, (True,) * 2):
                    yield _call("lora_linear_group", weights[1], dtype, tokens, biased=biased)
            yield _call("lora_linear", four_bit(N, K_TAIL), dtype, tokens, ("update",))
        for by in (CUBLAS, TRITON) if dtype != torch.float32 else ():
            yield Call("staged", dtype, functools.partial(_staged, dtype, by))
        for op in ("lora_project", "lora_factors_grad"):
            yield _call(op, weights[0], dtype, TOKENS[-1])
            yield _call(op, weights[0], dtype, TOKENS[-1], ())
        yield _call("dropout", weights[0], dtype, TOKENS[-1])
        yield _call("dequantize_4bit", weights[1], dtype)
        yield _call("quantize_4bit", weights[0], dtype)
        for weight in weights:
            yield _call("row_norm", weight, dtype)
            yield _call("squared_row_norm", weight, dtype)
    for op in ("quantize_absmax", "adalora_importance", "adalora_scores", "adalora_penalty", "adalora_penalty_grad"):
        yield _call(op, dense[torch.float32], torch.float32)


class _ZeroTensors:
    """Tensors for calls that are compiled: their values don't matter."""

    seed = torch.tensor(1)

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def levels(self) -> Tensor:
        return torch.arange(256.0)

    def factors(self) -> tuple[list[Tensor], list[int]]:
        return [torch.zeros(RANK, K), torch.zeros(N, RANK)], [0, 1]

    def penalties(self, factors: list[Tensor], rank_dims: list[int]) -> tuple[Tensor, ...]:
        return torch.ones(len(factors)), torch.ones(len(factors) * RANK * RANK)


def _call(
    op: str, weight: Storage, dtype: torch.dtype, tokens: int = 1, given: Collection[str] = OPTIONAL, **more: Any
) -> Call:
    from ..backends import triton_gpu

    def run() -> object:
        return getattr(triton_gpu, op)(
            *Sample(_ZeroTensors(), weight, dtype, tokens, RANK, given, **more).arguments(op)
        )

    return Call(op, dtype, run)


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
