"""Tensors of more than 2³² elements: the last programs of a launch read and write where they should.

The numbers are small integers, so that sums are exact and the rounding of a result is undone by rounding it again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from lorafam.kernels.adalora_importance import adalora_importance
from lorafam.kernels.adalora_scores import adalora_scores
from lorafam.kernels.dense_linear import dense_linear
from lorafam.kernels.formats import NF4
from lorafam.kernels.launch_table import launch_config
from lorafam.kernels.lora_factors_grad import lora_factors_grad
from lorafam.kernels.lora_grad_pass import lora_grad_pass
from lorafam.kernels.lora_linear_grad import lora_linear_grad as lora_linear_grad_kernel
from lorafam.kernels.nf4_dequantize import nf4_dequantize
from lorafam.kernels.nf4_quantize import nf4_quantize
from lorafam.kernels.paths import FUSED, Route

from lorafam.backends.triton_gpu import (
    dropout,
    lora_linear,
    lora_linear_grad,
    lora_linear_group,
    lora_project,
    row_norm,
)
from lorafam.backends.triton_gpu.four_bit import _bounds
from lorafam.backends.triton_gpu.launch import Launch, compiled_only, launch
from lorafam.backends.triton_gpu.weight import how_columns_are_read, weight_arguments
from lorafam.ops.by_storage import Storage, joined
from lorafam.reference.dropout import philox_words
from tests.conftest import INTERPRETING, need_ptxsim

from .far_memory import FarMemory, far, untouched_allocations

pytestmark = [pytest.mark.simulated, pytest.mark.skipif(INTERPRETING, reason="of compiled code only")]

Tensor = torch.Tensor
CPU = torch.device("cpu")
BF16 = torch.bfloat16
# so many rows of FEW features are more than 2³² elements, so many of 4-bit codes more than 2³² bytes; a program at the
# end has 37 rows
FEW, MANY, MANY_CODES = 4096, (1 << 20) + 37, (1 << 21) + 37
RANK, TOKENS, END = 16, 5, 37
# every that many weights of a row one isn't zero
EACH = 256


@pytest.fixture(autouse=True)
def _ptxsim() -> None:
    need_ptxsim()


def integers(*shape: int, dtype: torch.dtype = BF16, most: int = 1, each: int = 1) -> Tensor:
    """−most … most, one element of `each` in a row, the others 0."""
    values = torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(sum(shape)))
    values[..., torch.arange(shape[-1]) % each != 0] = 0
    return values.to(dtype)


def launched(name: str, call: Callable[[], object], architecture: str = "sm_80") -> Launch:
    """The launch of a kernel that `call` makes, compiled and not run."""
    with untouched_allocations(), compiled_only(architecture) as launches:
        call()
    return next(launch for launch in launches if launch.name == f"{name}_kernel")


def launched_alone(launcher: Callable[..., None], architecture: str = "sm_80", **arguments: Any) -> Launch:
    """The launch of a kernel's launcher, compiled and not run."""
    with compiled_only(architecture) as launches:
        launch(CPU, (), launcher, **arguments)
    return launches[0]


class Weight(NamedTuple):
    """A weight [rows, columns] whose last END rows `w` are written; what describes it to an op, and its parameters."""

    w: Tensor
    storage: Storage
    written: dict[str, tuple[int, Tensor]]

    def put(self, memory: FarMemory, member: str = "") -> None:
        for name, (first, values) in self.written.items():
            memory.put(name.format(member), first, values)


def weight(kind: str, rows: int, columns: int) -> Weight:
    """ "dense" in bf16, or "4-bit" with double quantisation. Sums over a row of `w`, times −1, 0, 1, are below 64."""
    w = integers(END, columns, each=EACH)
    first = (rows - END) * columns
    if kind == "dense":
        return Weight(w, Storage(far(rows, columns), [], []), {"w_ptr": (first, w)})
    # blocks lie across rows where 64 doesn't divide those
    first_block, blocks = first // 64, -(-rows * columns // 64)
    absmax = 1 + torch.arange(first_block, blocks) % 2
    codes = torch.full((first % 2 + END * columns,), NF4.levels.index(0.0))
    codes[first % 2 :] = torch.where(w == 0, NF4.levels.index(0.0), torch.where(w > 0, 15, 0)).long().view(-1)
    codes = torch.cat([codes, codes.new_zeros(len(codes) % 2)]).view(-1, 2)
    scale = absmax[(torch.arange(first, first + END * columns) // 64) - first_block].view(END, columns)
    levels = torch.arange(256.0)
    scales = [
        far(blocks, dtype=torch.uint8),
        far(-(-blocks // 256), dtype=torch.float32),
        levels,
        torch.zeros(1),
    ]
    storage = Storage(far(-(-rows * columns // 2), dtype=torch.uint8), scales, [rows, columns, 64, 0, 256])
    first_nested = first_block // 256
    written = {
        "w{}_ptr": (first // 2, (codes[:, 0] * 16 + codes[:, 1]).to(torch.uint8)),
        "absmax{}_ptr": (first_block, absmax.to(torch.uint8)),
        "nested_absmax{}_ptr": (first_nested, torch.ones(-(-blocks // 256) - first_nested)),
        "nested_levels{}_ptr": (0, levels),
        "offset{}_ptr": (0, torch.zeros(1)),
    }
    return Weight(w.float() * scale, storage, written)


def put_levels(memory: FarMemory, launch: Launch) -> None:
    levels = launch.arguments.get("levels_ptr")
    if levels is not None:
        memory.put("levels_ptr", 0, levels)


def rounded(values: Tensor) -> Tensor:
    return values.double().round()


def row_block(memory: FarMemory, name: str, rows: range, columns: range, stride: int) -> Tensor:
    """Elements of a parameter whose rows lie `stride` apart."""
    return torch.stack([memory.get(name, row * stride + columns.start, len(columns)) for row in rows])


def words_of(seed: int, rows: range, columns: range) -> Tensor:
    """The words of the dropout mask; columns in fours."""
    groups = torch.arange(columns.start // 4, columns.stop // 4)
    return philox_words(seed, torch.tensor(rows)[:, None], groups).flatten(1)


def test_dropout() -> None:

    seed, rows = torch.tensor(7), range(MANY - MANY % 16, MANY)
    found = launched("dropout", lambda: dropout(far(MANY, FEW), seed, 0.5))
    memory = FarMemory(found)
    x = integers(len(rows), FEW, most=9)
    memory.put("x_ptr", rows.start * FEW, x)
    memory.put("seed_ptr", 0, seed.view(1))
    memory.run([(found.grid[0] - 1, found.grid[1] - 1)])
    kept = torch.where(words_of(7, rows, range(FEW - 64, FEW)) >= 1 << 31, 2 * x[:, -64:], torch.zeros((), dtype=BF16))
    assert torch.equal(row_block(memory, "out_ptr", rows, range(FEW - 64, FEW), FEW), kept)


def test_lora_project() -> None:

    A, rows = integers(RANK, FEW), range(MANY - MANY % 32, MANY)
    found = launched("lora_project", lambda: lora_project(far(MANY, FEW), A, None, 0.0))
    memory = FarMemory(found)
    x = integers(len(rows), FEW)
    memory.put("x_ptr", rows.start * FEW, x)
    memory.put("a_ptr", 0, A)
    memory.run([(found.grid[0] - 1, 0)])
    assert torch.equal(
        memory.get("p_ptr", rows.start * RANK, len(rows) * RANK).view(-1, RANK), (x.float() @ A.T.float())
    )


def put_small(memory: FarMemory, found: Launch, **values: tuple[int, Tensor]) -> None:
    put_levels(memory, found)
    for name, (first, value) in values.items():
        memory.put(f"{name}_ptr", first, value)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product is staged, as a user's own table of paths may have it."""
    for op in (lora_linear, lora_linear_grad):
        monkeypatch.setattr(sys.modules[op.__module__], "path_of", lambda *_: Route(FUSED))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kind", ["dense", "4-bit"])
def test_lora_linear_over_many_tokens(kind: str, architecture: str) -> None:
    """x, P and Y."""
    N = FEW + 16
    W, B_hat, bias = weight(kind, N, FEW), far(N, RANK, dtype=torch.float32), far(N, dtype=torch.float32)
    P = far(MANY, RANK, dtype=torch.float32)
    found = launched("lora_linear", lambda: lora_linear(far(MANY, FEW), *W.storage, P, B_hat, None, bias), architecture)
    memory = FarMemory(found)
    W.put(memory)
    x, p, b = integers(END, FEW), integers(END, RANK, dtype=torch.float32), integers(16, RANK, dtype=torch.float32)
    put_small(
        memory,
        found,
        x=((MANY - END) * FEW, x),
        p=((MANY - END) * RANK, p),
        b_hat=((N - 16) * RANK, b),
        bias=(N - 16, torch.ones(16)),
    )
    memory.run([(found.grid[0] - 1, 0)])
    y = row_block(memory, "y_ptr", range(MANY - END, MANY), range(N - 16, N), N)
    assert torch.equal(rounded(y), x.double() @ W.w[-16:].double().T + p.double() @ b.double().T + 1)


KINDS = [("dense", MANY, FEW), ("4-bit", MANY_CODES, FEW), ("4-bit", MANY_CODES, FEW + 8)]
KIND_NAMES = ["dense", "packed", "elements"]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("kind", "N", "K"), KINDS, ids=KIND_NAMES)
def test_lora_linear_over_a_large_weight(kind: str, N: int, K: int, architecture: str) -> None:

    W, x = weight(kind, N, K), integers(TOKENS, K)
    found = launched("lora_linear", lambda: lora_linear(x, *W.storage, None, None, None, None), architecture)
    memory = FarMemory(found)
    W.put(memory)
    put_small(memory, found, x=(0, x))
    memory.run([(found.grid[0] - 1, 0)])
    y = row_block(memory, "y_ptr", range(TOKENS), range(N - END, N), N)
    assert torch.equal(rounded(y), x.double() @ W.w.double().T)


def test_lora_linear_group() -> None:

    W, x = [weight("4-bit", MANY_CODES, FEW) for _ in range(3)], integers(TOKENS, FEW)
    group = joined([one.storage for one in W])
    P = torch.zeros(TOKENS, RANK)
    B_hat = [far(MANY_CODES, RANK, dtype=torch.float32) for _ in range(3)]
    bias = [far(MANY_CODES, dtype=torch.float32) for _ in range(3)]
    found = launched("lora_linear_group", lambda: lora_linear_group(x, *group, [P] * 3, B_hat, bias))
    memory = FarMemory(found)
    put_levels(memory, found)
    memory.put("x_ptr", 0, x)
    memory.put("p_0_ptr", 0, P)
    for i in range(3):
        W[i].put(memory, f"_{i}")
        memory.put(f"b_hat_{i}_ptr", (MANY_CODES - END) * RANK, torch.zeros(END * RANK))
        memory.put(f"bias_{i}_ptr", MANY_CODES - END, torch.full((END,), float(i)))
    tiles = found.grid[0] // 3
    memory.run([(tiles * (i + 1) - 1, 0) for i in range(3)])
    for i in range(3):
        y = row_block(memory, f"y_{i}_ptr", range(TOKENS), range(MANY_CODES - END, MANY_CODES), MANY_CODES)
        assert torch.equal(rounded(y), x.double() @ W[i].w.double().T + i)


@pytest.mark.parametrize(("kind", "N", "K"), KINDS, ids=KIND_NAMES)
def test_lora_linear_grad_over_a_large_weight(kind: str, N: int, K: int) -> None:
    """The last of the programs that share N: what it leaves for the others' last to add."""

    W, G = weight(kind, N, K), far(TOKENS, N)
    arguments = weight_arguments(W.storage, "sm_80")
    read = how_columns_are_read(arguments, K)
    config = launch_config("lora_linear_grad", "sm_80", "bfloat16", TOKENS, read, N=N, K=K)
    share = 4 * config["BLOCK_N"]
    programs, tiles, size = -(-N // share), -(-K // config["BLOCK_K"]), config["BLOCK_M"] * config["BLOCK_K"]
    found = launched_alone(
        lora_linear_grad_kernel,
        grad_y=G,
        weight=arguments,
        c=None,
        q=None,
        a=None,
        seed=None,
        dx=far(TOKENS, K),
        parts=far(programs * tiles * size, dtype=torch.float32),
        arrivals=torch.zeros(tiles, dtype=torch.int32),
        M=TOKENS,
        N=N,
        K=K,
        R=0,
        share=share,
        dropout={"threshold": 0, "keep_scale": 1.0},
        config=config,
    )
    memory = FarMemory(found)
    W.put(memory)
    put_levels(memory, found)
    g = integers(TOKENS, END)
    for token in range(TOKENS):
        memory.put("grad_y_ptr", (token + 1) * N - END, g[token])
    memory.put("arrivals_ptr", tiles - 1, torch.zeros(1, dtype=torch.int32))
    memory.run([(tiles - 1, programs - 1)])
    columns = K - (tiles - 1) * config["BLOCK_K"]
    part = [
        memory.get("parts_ptr", (programs * tiles - 1) * size + token * config["BLOCK_K"], columns)
        for token in range(TOKENS)
    ]
    exact = g.double() @ W.w.double()
    assert torch.equal(rounded(torch.stack(part)), exact[:, -columns:])


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("kind", ["dense", "4-bit"])
def test_lora_linear_grad_over_many_tokens(kind: str) -> None:
    """G, Q and dx."""
    N, K = FEW, FEW + 64
    W, Q, A = weight(kind, N, K), far(MANY, RANK, dtype=torch.float32), integers(RANK, K, dtype=torch.float32)
    found = launched(
        "lora_linear_grad", lambda: lora_linear_grad(far(MANY, N), *W.storage, None, Q, A, torch.tensor(7), 0.5)
    )
    memory = FarMemory(found)
    # the rows before the last are zeros
    if kind == "dense":
        memory.put("w_ptr", 0, torch.zeros(N, K, dtype=BF16))
    else:
        zeros = NF4.levels.index(0.0) * 17
        memory.put("w_ptr", 0, torch.full((N * K // 2,), zeros, dtype=torch.uint8))
        memory.put("absmax_ptr", 0, torch.zeros(N * K // 64, dtype=torch.uint8))
        memory.put("nested_absmax_ptr", 0, torch.ones(-(-N * K // 64 // 256)))
    W.put(memory)
    g, q = integers(END, N), integers(END, RANK, dtype=torch.float32)
    put_small(
        memory,
        found,
        grad_y=((MANY - END) * N, g),
        q=((MANY - END) * RANK, q),
        a=(0, A),
        seed=(0, torch.tensor([7])),
    )
    memory.run([(found.grid[0] - 1, 0)])
    rows, columns = range(MANY - END, MANY), range(FEW, K)
    kept = 2 * (words_of(7, rows, columns) >= 1 << 31)
    exact = g[:, -END:].double() @ W.w[:, FEW:].double() + kept * (q.double() @ A.double())[:, FEW:]
    assert torch.equal(rounded(row_block(memory, "dx_ptr", rows, columns, K)), exact)


def test_lora_factors_grad() -> None:
    """X, Y and F: the last of the programs that share the tokens, which adds up what the others left."""

    config = launch_config("lora_factors_grad", "sm_80", "bfloat16", MANY, K=FEW, rank=RANK)
    share, size = 1 << 17, config["BLOCK_C"] * (config["BLOCK_R"] + 2)
    programs, tiles = -(-MANY // share), FEW // config["BLOCK_C"]
    found = launched_alone(
        lora_factors_grad,
        x=far(MANY, FEW),
        f=far(MANY, RANK, dtype=torch.float32),
        s=None,
        seed=None,
        saved_y=far(MANY, FEW),
        bias=None,
        magnitude=torch.ones(FEW),
        grad=far(FEW, RANK, dtype=torch.float32),
        dm=torch.zeros(FEW),
        dbias=torch.zeros(FEW),
        parts=far(programs * tiles * size, dtype=torch.float32),
        arrivals=torch.zeros(tiles, dtype=torch.int32),
        M=MANY,
        C=FEW,
        R=RANK,
        share=share,
        strides=(RANK, 1),
        dropout={"threshold": 0, "keep_scale": 1.0},
        config=config,
    )
    memory = FarMemory(found)
    x, y, f = integers(END, FEW), integers(END, FEW, most=3), integers(END, RANK, dtype=torch.float32)
    put_small(
        memory,
        found,
        x=((MANY - END) * FEW, x),
        saved_y=((MANY - END) * FEW, y),
        f=((MANY - END) * RANK, f),
        magnitude=(0, torch.ones(FEW)),
        parts=((programs * tiles - programs) * size, torch.zeros((programs - 1) * size)),
        arrivals=(tiles - 1, torch.tensor([programs - 1], dtype=torch.int32)),
    )
    memory.run([(tiles - 1, programs - 1)])
    own = slice(FEW - config["BLOCK_C"], FEW)
    grad = memory.get("grad_ptr", own.start * RANK, config["BLOCK_C"] * RANK).view(-1, RANK)
    assert torch.equal(grad.double(), x.double().T[own] @ f.double())
    assert torch.equal(memory.get("dm_ptr", own.start, config["BLOCK_C"]), (x * y).float().sum(0)[own])
    assert torch.equal(memory.get("dbias_ptr", own.start, config["BLOCK_C"]), x.float().sum(0)[own])


def test_lora_grad_pass() -> None:
    """G, Y, the parts of dB̂ (past 2³¹ elements) and those of Q."""

    M, N = (1 << 22) + END, FEW + 64
    config = launch_config("lora_grad_pass", "sm_80", "bfloat16", M, K=N, rank=RANK)
    tiles, share = -(-M // config["BLOCK_M"]), config["BLOCK_N"]
    programs, size = N // share, config["BLOCK_M"] * config["BLOCK_R"]

    def fp32(*shape: int) -> Tensor:
        return far(*shape, dtype=torch.float32)

    found = launched_alone(
        lora_grad_pass,
        grad_y=far(M, N),
        p=fp32(M, RANK),
        b_hat=fp32(N, RANK),
        c=None,
        saved_y=far(M, N),
        bias=None,
        q=fp32(M, RANK),
        b_parts=fp32(tiles, N, RANK),
        dm_parts=fp32(tiles, N),
        dbias_parts=fp32(tiles, N),
        parts=fp32(tiles * programs * size),
        arrivals=torch.zeros(tiles, dtype=torch.int32),
        M=M,
        N=N,
        R=RANK,
        share=share,
        config=config,
    )
    memory = FarMemory(found)
    g, y = integers(END, share), integers(END, share, most=3)
    p, b = integers(END, RANK, dtype=torch.float32), integers(share, RANK, dtype=torch.float32)
    for row in range(END):
        memory.put("grad_y_ptr", (M - END + row + 1) * N - share, g[row])
        memory.put("saved_y_ptr", (M - END + row + 1) * N - share, y[row])
    put_small(
        memory,
        found,
        p=((M - END) * RANK, p),
        b_hat=((N - share) * RANK, b),
        arrivals=(tiles - 1, torch.zeros(1, dtype=torch.int32)),
    )
    memory.run([(tiles - 1, programs - 1)])
    G = g.double()
    last = tiles * N - share
    assert torch.equal(memory.get("b_parts_ptr", last * RANK, share * RANK).double().view(-1, RANK), G.T @ p.double())
    assert torch.equal(memory.get("dm_parts_ptr", last, share).double(), (G * y).sum(0))
    assert torch.equal(memory.get("dbias_parts_ptr", last, share).double(), G.sum(0))
    q = memory.get("parts_ptr", (tiles * programs - 1) * size, END * RANK).view(END, RANK)
    assert torch.equal(q.double(), G @ b.double())


def test_nf4_dequantize() -> None:

    W = weight("4-bit", MANY_CODES, FEW)
    found = launched_alone(
        nf4_dequantize,
        weight=weight_arguments(W.storage, "sm_80"),
        c=None,
        decoded=far(MANY_CODES, FEW),
        N=MANY_CODES,
        K=FEW,
        config=launch_config("nf4_dequantize", "sm_80", "bfloat16", N=MANY_CODES, K=FEW),
    )
    memory = FarMemory(found)
    W.put(memory)
    put_levels(memory, found)
    own = 64 * 64
    memory.run([(found.grid[0] - 1, 0)])
    assert torch.equal(memory.get("decoded_ptr", MANY_CODES * FEW - own, own).float(), W.w.view(-1)[-own:])


def test_nf4_quantize() -> None:

    count = MANY_CODES * FEW
    bounds, order = _bounds("nf4", CPU)
    found = launched_alone(
        nf4_quantize,
        w=far(count),
        bounds=bounds,
        order=order,
        codes=far(count // 2, dtype=torch.uint8),
        absmax=far(count // 64, dtype=torch.float32),
        count=count,
        smallest=1e-38,
        block_size=64,
        config=launch_config("nf4_quantize", "sm_80", "bfloat16"),
    )
    memory = FarMemory(found)
    w = torch.tensor(NF4.levels).repeat(4).to(BF16) * 3
    put_small(memory, found, w=(count - 64, w), bounds=(0, bounds), order=(0, order))
    memory.run([(found.grid[0] - 1, 0)])
    code = torch.arange(0, 16, 2).repeat(4)
    assert torch.equal(memory.get("codes_ptr", count // 2 - 32, 32).long(), code * 16 + code + 1)
    assert memory.get("absmax_ptr", count // 64 - 1, 1) == 3


@pytest.mark.parametrize(("kind", "N", "K"), KINDS, ids=KIND_NAMES)
def test_row_norm(kind: str, N: int, K: int) -> None:

    W, A = weight(kind, N, K), integers(RANK, K, dtype=torch.float32, each=EACH)
    found = launched("row_norm", lambda: row_norm(*W.storage, A, far(N, RANK, dtype=torch.float32), None))
    memory = FarMemory(found)
    W.put(memory)
    b = integers(END, RANK, dtype=torch.float32)
    put_small(memory, found, a=(0, A), b_hat=((N - END) * RANK, b), gram=(0, A @ A.T))
    memory.run([(found.grid[0] - 1, 0)])
    exact = (W.w.double() + b.double() @ A.double()).square().sum(1)
    own = N % found.kernel.src.constants[(found.kernel.src.fn.arg_names.index("BLOCK_N"),)]
    assert torch.equal(rounded(memory.get("n_ptr", N - own, own).double().square()), exact[END - own :])


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("large", ["tokens", "weight"])
def test_dense_linear(large: str, architecture: str) -> None:

    M, N = (MANY, FEW + 48) if large == "tokens" else (TOKENS, MANY)
    config = launch_config("dense_linear", architecture, "bfloat16", M, N=N, K=FEW, rank=RANK)
    tiles = -(-M // config["BLOCK_M"]) * -(-N // config["BLOCK_N"])
    found = launched_alone(
        dense_linear,
        architecture,
        x=far(M, FEW),
        w=far(N, FEW),
        f=far(M, RANK, dtype=torch.float32),
        h=far(N, RANK, dtype=torch.float32).T,
        seed=None,
        bias=None,
        y=far(M, N),
        K=FEW,
        strides=(1, RANK),
        dropout={"threshold": 0, "keep_scale": 1.0},
        programs=tiles,
        backward=False,
        config=config,
    )
    memory = FarMemory(found)
    rows, columns = M % config["BLOCK_M"], N % config["BLOCK_N"]
    x, w = integers(rows, FEW, each=EACH), integers(columns, FEW)
    f, h = integers(rows, RANK, dtype=torch.float32), integers(columns, RANK, dtype=torch.float32)
    put_small(memory, found, f=((M - rows) * RANK, f), h=((N - columns) * RANK, h))
    memory.put("x_desc", (M - rows) * FEW, x)
    memory.put("w_desc", (N - columns) * FEW, w)
    memory.run([(found.grid[0] - 1, 0)])
    exact = x.double() @ w.double().T + f.double() @ h.double().T
    got = row_block(memory, "y_ptr", range(M - rows, M), range(N - columns, N), N)
    assert torch.equal(rounded(got), exact)


def test_adalora_importance() -> None:

    count = MANY * FEW + END
    names = ("w", "grad", "sensitivity", "uncertainty")
    found = launched_alone(
        adalora_importance,
        **{name: far(count, dtype=torch.float32) for name in names},
        count=count,
        beta1=0.5,
        beta2=0.5,
        config=launch_config("adalora_importance", "sm_80", "float32"),
    )
    memory = FarMemory(found)
    own = count % 1024
    put_small(memory, found, **{name: (count - own, torch.full((own,), 4.0)) for name in names})
    memory.run([(found.grid[0] - 1, 0)])
    assert (memory.get("sensitivity_ptr", count - own, own) == 10).all()
    assert (memory.get("uncertainty_ptr", count - own, own) == 5).all()


def test_adalora_scores() -> None:

    count = MANY * FEW
    segments = torch.tensor([[count - END * RANK, RANK, END]])
    found = launched_alone(
        adalora_scores,
        sensitivity=far(count, dtype=torch.float32),
        uncertainty=far(count, dtype=torch.float32),
        segments=segments,
        scores=torch.zeros(1),
        S=1,
        config=launch_config("adalora_scores", "sm_80", "float32"),
    )
    memory = FarMemory(found)
    tail = torch.arange(float(RANK)).repeat(END)
    put_small(
        memory,
        found,
        sensitivity=(count - END * RANK, tail + 3),
        uncertainty=(count - END * RANK, tail + 2),
        segments=(0, segments),
    )
    memory.run([(0, 0)])
    assert memory.get("scores_ptr", 0, 1) == 6
