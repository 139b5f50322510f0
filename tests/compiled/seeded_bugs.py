"""Seeds one bug at a time into a copy of the kernels and asks the tests to find it.

    python -m tests.compiled.seeded_bugs

Operators: a mask dropped, nibbles swapped, a scale's index shifted, a barrier or a loop's end moved, a wrong stride, a
lost tail, a wrong start of the accumulator, a stale seed, a rounding in the wrong place. Prints a line a bug; exit code
1 where one survives.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.tree import copied_tree

from .bugs import ADALORA, BUGS, FOUR_BIT, PRODUCTS, Bug


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
        chosen = "triton_gpu" if bug.tests == FOUR_BIT else bug.chosen
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
            copies.put(copied_tree(Path(folder) / str(number)))

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
