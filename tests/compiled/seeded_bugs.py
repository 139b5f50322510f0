"""Seeds one bug at a time into a copy of the kernels and asks the tests to find it.

    python -m tests.compiled.seeded_bugs

Operators: a mask dropped, nibbles swapped, a scale's index shifted, a barrier or a loop's end moved, a wrong stride, a
lost tail, a wrong start of the accumulator, a stale seed, a rounding in the wrong place. Prints a line a bug; exit code
1 where one survives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# in this order: the first runs every kernel once, so that most bugs are found in a minute
PRODUCTS = tuple(
    f"tests/{name}.py"
    for name in (
        "backends/triton_gpu/test_every_configuration",
        "backends/triton_gpu/test_compiled_code",
        "test_functional",
    )
)
FOUR_BIT = ("tests/backends/test_four_bit.py",)
ROW_NORM = ("tests/backends/test_row_norm.py",)
ADALORA = ("tests/backends/triton_gpu/test_adalora.py",)


# of compiled code: instructions taken out of the PTX of every kernel
AHEAD_OF_TIME = "../lorafam/backends/triton_gpu/ahead_of_time.py"
COMPILED = "kernel = _compiled[key] = triton.compile(source, target=target, options=options.__dict__)\n"
WITHOUT = """            lines = kernel.asm["ptx"].splitlines()
            kernel.asm["ptx"] = "\\n".join(line for line in lines if not line.strip().startswith("{text}"))
"""


class Bug(NamedTuple):
    """`old` stands once in kernels/`file` and is replaced by `new`; `tests` should find it."""

    file: str
    operator: str
    old: str
    new: str
    tests: tuple[str, ...] = PRODUCTS


BUGS = (
    Bug("tiles/nf4_decode.py", "swap nibbles (PTX)", "even=0, odd=2)", "even=2, odd=0)"),
    Bug("tiles/nf4_decode.py", "half of the table (PTX)", 'pick="0xd9c8"', 'pick="0xd8c9"'),
    Bug(
        "tiles/nf4_decode.py",
        "shift a scale index",
        "tl.load(scales[1] + block // 256",
        "tl.load(scales[1] + block // 512",
    ),
    Bug("tiles/nf4_decode.py", "lose the offset", " + tl.load(scales[3])", ""),
    Bug("tiles/nf4_decode.py", "drop a mask", "return tl.where(mask, absmax, 0.0)", "return absmax"),
    Bug("tiles/weight_tile.py", "swap nibbles", "tl.where(element % 2 == 0", "tl.where(element % 2 != 0"),
    Bug("tiles/weight_tile.py", "shift a scale index", "element // BLOCK_SIZE", "(element + 1) // BLOCK_SIZE"),
    Bug("tiles/weight_tile.py", "wrong stride", "rows.to(tl.int64) * stride_wn +", "rows.to(tl.int64) * stride_wk +"),
    Bug(
        "tiles/weight_product.py",
        "wrong stride",
        "offs_n.to(tl.int64) * (K // 2)",
        "offs_n.to(tl.int64) * (K // 2 + 1)",
    ),
    Bug(
        "tiles/weight_product.py",
        "shift a scale index",
        "blocks + k // BLOCK_SIZE",
        "blocks + (k + BLOCK_K) // BLOCK_SIZE",
    ),
    Bug(
        "tiles/weight_product.py",
        "swap even and odd",
        "part = exact_dot(w_even, tl.trans(x_even)",
        "part = exact_dot(w_even, tl.trans(x_odd)",
    ),
    Bug("tiles/weight_product.py", "lose the gain", "mask_n) * INVERSE_GAIN", "mask_n)"),
    Bug("tiles/weight_product.py", "lost tail of K", "mask_k = offs_k < end\n", "mask_k = offs_k < end - 1\n"),
    Bug(
        "tiles/weight_product.py",
        "lost tail of R",
        "for r in range(0, R, BLOCK_R)",
        "for r in range(0, R - BLOCK_R + 1, BLOCK_R)",
    ),
    Bug(
        "tiles/weight_product.py",
        "drop a mask",
        "(offs_n < N)[:, None] & (offs_r < R)[None, :]",
        "(offs_n < N)[:, None] & (offs_r >= 0)[None, :]",
    ),
    Bug("tiles/dropout.py", "wrong counter", "first_column // 4 + tl.arange", "first_column // 4 + 1 + tl.arange"),
    Bug(
        "tiles/dropout.py",
        "words in another order",
        "tl.join(word0, word2), tl.join(word1, word3)",
        "tl.join(word0, word1), tl.join(word2, word3)",
    ),
    Bug("tiles/exact_dot.py", "lose a piece", "        part = tl.dot(a, b2, part)\n", ""),
    Bug("tiles/exact_dot.py", "lose a pair", "        part = tl.dot(a2, b1, part)\n", ""),
    Bug("tiles/tile_order.py", "wrong order", "height = tl.minimum(tiles_m - first_m, GROUP)", "height = GROUP"),
    Bug("lora_linear.py", "wrong accumulator start", "acc = low_rank_start(", "acc = 2.0 * low_rank_start("),
    Bug(
        "lora_linear.py",
        "drop a mask",
        "& (offs_m < M)[None, :]\n    tl.store",
        "& (offs_m < M + 1)[None, :]\n    tl.store",
    ),
    Bug(
        "lora_linear.py",
        "scale after bias",
        "    if c_ptr is not None:\n        acc *=",
        "    if bias_ptr is None and c_ptr is not None:\n        acc *=",
    ),
    Bug("lora_decode.py", "lost share", "tl.minimum(first + share, K)", "tl.minimum(first + share, K - 1)"),
    Bug("lora_decode.py", "wrong stride", "split.to(tl.int64) * M + offs_m", "split.to(tl.int64) * (M + 1) + offs_m"),
    Bug("split_sum.py", "lost part", "for _ in range(S)", "for _ in range(S - 1)"),
    Bug("split_sum.py", "wrong stride", "part += stride_s", "part += stride_s - 1"),
    Bug("lora_linear_grad.py", "stale seed", "kept(tl.load(seed_ptr),", "kept(tl.load(seed_ptr) + 1,"),
    Bug(
        "lora_linear_grad.py",
        "drop the mask",
        "acc = tl.where(keep, acc * keep_scale, 0.0)",
        "acc = acc * keep_scale",
    ),
    Bug(
        "lora_linear_grad.py",
        "lose the scale",
        "* tl.load(c_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[:, None]",
        "",
    ),
    Bug(
        "lora_linear_grad.py",
        "lost tail of N",
        "for n in range(0, N, BLOCK_N)",
        "for n in range(0, N - BLOCK_N + 1, BLOCK_N)",
    ),
    Bug("lora_project.py", "stale seed", "kept(tl.load(seed_ptr), offs_m, k,", "kept(tl.load(seed_ptr), offs_m, 0,"),
    Bug(
        "lora_project.py",
        "lost tail of K",
        "for k in range(0, K, BLOCK_K)",
        "for k in range(0, K - BLOCK_K + 1, BLOCK_K)",
    ),
    Bug(
        "lora_project.py",
        "lose the scale",
        "if c_ptr is not None:\n            a =",
        "if c_ptr is not None and K < 0:\n            a =",
    ),
    Bug(
        "lora_factors_grad.py",
        "lost tail of M",
        "for m in range(0, M, BLOCK_M)",
        "for m in range(0, M - BLOCK_M + 1, BLOCK_M)",
    ),
    Bug(
        "lora_factors_grad.py",
        "sums of the dropped",
        "dbias += tl.sum(x.to(tl.float32), axis=0)",
        "dbias += tl.sum(tl.abs(x.to(tl.float32)), axis=0)",
    ),
    Bug("lora_factors_grad.py", "lose the bias", "y -= tl.load(bias_ptr", "y -= 0.5 * tl.load(bias_ptr"),
    Bug("row_norm.py", "lose the cross term", "cross *= 2.0", "cross *= 1.0"),
    Bug(
        "row_norm.py",
        "cancelling rows not redone",
        "total = tl.where(near, direct, total)",
        "total = tl.where(near, total, total)",
        ROW_NORM,
    ),
    Bug(
        "row_norm.py", "lost tail of R", "for s in range(0, R, BLOCK_R)", "for s in range(0, R - BLOCK_R + 1, BLOCK_R)"
    ),
    Bug("nf4_dequantize.py", "swap nibbles", "tl.join(even, odd)", "tl.join(odd, even)", FOUR_BIT),
    Bug("nf4_dequantize.py", "shift a scale index", "byte * 2 // BLOCK_SIZE", "byte // BLOCK_SIZE", FOUR_BIT),
    Bug("nf4_dequantize.py", "contraction", "contract=False", "contract=True", FOUR_BIT),
    Bug(
        "nf4_quantize.py",
        "tie goes up",
        "(scaled > tl.load(bounds_ptr + i))",
        "(scaled >= tl.load(bounds_ptr + i))",
        FOUR_BIT,
    ),
    Bug("nf4_quantize.py", "last block multiplied", "tl.where(whole[:, None], product, quotient)", "product", FOUR_BIT),
    Bug("nf4_quantize.py", "lost tail", "mask=byte * 2 < count", "mask=byte * 2 + 1 < count", FOUR_BIT),
    Bug(
        "absmax_quantize.py",
        "not over the grid",
        "value = tl.div_rn(step * 2.0, STEPS) - 1.0",
        "value = value",
        FOUR_BIT,
    ),
    Bug("absmax_quantize.py", "drop a mask", "mask = offs < B", "mask = offs <= B", FOUR_BIT),
    Bug("adalora_importance.py", "old smoothing", "tl.abs(importance - sensitivity)", "tl.abs(importance)", ADALORA),
    Bug(
        "adalora_scores.py",
        "lost tail",
        "for start in range(0, count, BLOCK)",
        "for start in range(0, count - BLOCK + 1, BLOCK)",
        ADALORA,
    ),
    Bug("adalora_scores.py", "wrong stride", "first + index * stride", "first + index", ADALORA),
    Bug("adalora_penalty.py", "lost tail", "range(0, L, BLOCK_L)", "range(0, L - BLOCK_L + 1, BLOCK_L)", ADALORA),
    Bug(
        "adalora_penalty.py",
        "wrong accumulator start",
        "s = tl.zeros((BLOCK_R, BLOCK_R)",
        "s = tl.full((BLOCK_R, BLOCK_R), 1.0",
        ADALORA,
    ),
    Bug(
        "adalora_penalty.py",
        "drop a mask",
        "mask & (offs_i[:, None] == offs_j[None, :])",
        "offs_i[:, None] == offs_j[None, :]",
        ADALORA,
    ),
    Bug(
        "adalora_penalty_grad.py",
        "lost tail of R",
        "for j in range(0, R, BLOCK_R)",
        "for j in range(0, R - BLOCK_R + 1, BLOCK_R)",
        ADALORA,
    ),
    Bug("adalora_penalty_grad.py", "not 0 at 0", "tl.where(distance > 0.0, ", "tl.where(distance >= 0.0, ", ADALORA),
    Bug("adalora_importance.py", "drop a mask", "mask = offs < count", "mask = offs < count + 1", ADALORA),
    Bug("dropout.py", "lose the scale", "x * keep_scale", "x"),
    Bug(AHEAD_OF_TIME, "drop the barriers", COMPILED, COMPILED + WITHOUT.format(text="bar.sync")),
    Bug(AHEAD_OF_TIME, "drop the waits for copies", COMPILED, COMPILED + WITHOUT.format(text="cp.async.wait_group")),
)


def finding(bug: Bug, copy: Path) -> str | None:
    """What the tests say of a copy of the tree with this bug; None where they pass.

    Raises RuntimeError where it doesn't compile: such a bug proves nothing.
    """
    path = copy / "kernels" / bug.file
    text = path.read_text(encoding="utf-8")
    if bug.old not in text:
        raise ValueError(f"{bug.file}: not found: {bug.old}")
    path.write_text(text.replace(bug.old, bug.new, 1), encoding="utf-8")
    try:
        chosen = "triton_gpu" if bug.tests == FOUR_BIT else "simulate or sm_80"
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "", "-k", chosen, *bug.tests]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LORAFAM_NEED_PTXSIM": "1"}
        result = subprocess.run(command, cwd=copy, capture_output=True, text=True, env=environment)
    finally:
        path.write_text(text, encoding="utf-8")
    if result.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {result.returncode}:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    if result.returncode == 0:
        return None
    said = [line.removeprefix("E ").strip() for line in result.stdout.splitlines() if line.startswith("E ")]
    if any("CompilationError" in line for line in said):
        raise RuntimeError(f"{bug.file}, {bug.operator}: doesn't compile: {said[:3]}")
    return next((line for line in said if line), "failed")


def copied_tree(folder: str) -> Path:
    copy = Path(folder) / "lorafam"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "demo-output", "__pycache__"))
    for name in ("kernels", "bench"):
        os.symlink(Path("..") / name, copy / "lorafam" / name)
    return copy


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="bugs in files whose name contains this")
    parser.add_argument("--jobs", type=int, default=2, help="bugs tested at the same time")
    options = parser.parse_args()
    bugs = [bug for bug in BUGS if options.only in bug.file]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs):
            copies.put(copied_tree(f"{folder}/{number}"))

        def examine(bug: Bug) -> str | None:
            copy = copies.get()
            try:
                return finding(bug, copy)
            finally:
                copies.put(copy)

        found = examine(Bug("dropout.py", "no bug", "", "", (PRODUCTS[0], *ADALORA)))
        if found is not None:
            raise RuntimeError(f"the tests fail without a bug: {found}")
        for bug, found in zip(bugs, pool.map(examine, bugs), strict=True):
            survivors += found is None
            print(
                f"{'SURVIVED' if found is None else 'caught'}  {bug.file}: {bug.operator}: {found or ''}"[:150],
                flush=True,
            )
    print(f"{len(bugs) - survivors} of {len(bugs)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
