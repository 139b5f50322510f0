"""`make gpu`: what this machine's GPU shows, an item at a time, into RESULTS; the next call goes on where one stopped.

PART=check, tests, bench, tune, profile, step, or next (the next unfinished of all). Without PART everything in order,
however long it takes. Exit code 1 where something failed, 75 where something is left to do, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import store
from .cases import BAD
from .device import device
from .gathered import gathered, problems
from .plan import OPTIONAL, PARTS, Item, items
from .runner import Runner
from .start import RESULTS, ROOT

INTERRUPTED, UNFINISHED = 130, 75
MINUTES = 8.0
VERSIONED = ("lorafam", "torch", "triton", "transformers", "peft", "bitsandbytes", "numba")
FOREVER = 30 * 24 * 60.0
# the fixtures, parameters and mark of tests that run on a GPU
FOR_GPU = re.compile(r'\b(backend|kernels): str\b|usefixtures\("kernels"\)|\b(CUDA_MODULE|BACKENDS|mark\.gpu)\b')


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=[*PARTS, "next", ""], default="", help="which; next: what isn't finished yet")
    parser.add_argument("--minutes", type=float, help=f"it ends by itself within so many [default: {MINUTES:g}]")
    parser.add_argument("--results", default="", help="a folder [default: bench/results/<gpu>]")
    parser.add_argument("--packed", default="", help="a .tar.gz of it, written after each item and read at the start")
    parser.add_argument("--list", action="store_true", help="show the items and what became of them, and run nothing")
    options = parser.parse_args(given)
    if options.minutes is None:
        options.minutes = MINUTES if options.part else FOREVER
    if not options.minutes > 0:
        parser.error(f"--minutes: expected more than 0, got {options.minutes:g}")
    return options


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    deadline = time.time() + 60 * options.minutes
    if refusal := device().refusal():
        raise SystemExit(f"gpu: {refusal}")
    root = Path.cwd()
    run = this_run(root)
    results = Path(options.results or Path(os.environ[RESULTS]) / slug(run["gpu"]["name"])).resolve()
    try:
        if options.packed:
            store.unpack(Path(options.packed), results)
        folder, said = store.folder_of(results, run)
        if said:
            print(said)
        with store.held(folder):
            return measured(options, items(options.part or "next", test_files(root)), folder, results, deadline)
    except store.OtherRunError as error:
        raise SystemExit(f"gpu: {error}") from None


def measured(options: argparse.Namespace, todo: list[Item], folder: Path, results: Path, deadline: float) -> int:
    """Runs the items, and tells what came of them."""

    def left() -> list[str]:
        return [item.name for item in todo if not runner.record(item).finished]

    def keep() -> None:
        gathered(folder, left())
        if options.packed:
            store.pack(results, Path(options.packed))

    runner = Runner(folder, deadline, lambda text: print(text, flush=True), keep)
    if not options.list:
        for line in missing():
            print(line)
        try:
            runner.run(todo)
        except KeyboardInterrupt:
            print(f"\ninterrupted; the same command goes on; what was measured is in {folder}")
            return INTERRUPTED
        finally:
            keep()
    wrong = problems(folder, [item.name for item in todo])
    if options.list:
        for item in todo:
            record = runner.record(item)
            bad = sum(case["outcome"] in BAD for case in record.cases.values())
            state = "finished" if record.finished else "begun" if record.cases else "not begun"
            print(f"{item.name}: {state}, {len(record.cases)} cases, {bad} bad")
    for line in wrong:
        print(f"FAILED {line}")
    print(f"{len(todo) - len(left())} of {len(todo)} items finished; {folder / 'page.md'}")
    if left():
        print(f"the same command goes on with {left()[0]}")
    return 1 if wrong else UNFINISHED if left() else 0


def this_run(root: Path) -> dict[str, Any]:
    """What results are of. Two runs that differ in `store.SAME` aren't put together."""
    return {
        "gpu": device().card(),
        "versions": {**{name: version(name) for name in VERSIONED}, "python": sys.version.split()[0]},
        "code": store.code_digest(root),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The checkout's, None where it isn't one of git's."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def missing() -> list[str]:
    """What isn't installed, and what that costs."""
    absent = Item("", "", needs=OPTIONAL).missing()
    if not absent:
        return []
    return [f"not installed: {', '.join(absent)}; the tests and peers that need them are left out by name"]


def test_files(root: Path) -> tuple[str, ...]:
    """Test files that have something of the GPU's: by the fixtures and marks that such tests have."""
    files = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        if FOR_GPU.search(path.read_text(encoding="utf-8")):
            inside = path.relative_to(root)
            if inside.parts[1] not in ("bench", "compiled", "numba_cpu"):
                files.append(str(inside))
    return tuple(files)


def slug(name: str) -> str:
    """A card's name as a folder's: "NVIDIA H100 80GB HBM3" → "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
