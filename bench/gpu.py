"""`make gpu`: self-check, every test, ten minutes of `lorafam tune` and the benchmark on this machine's GPU, written to
bench/results/<gpu>.json, and as a page to <gpu>.md.

Each part, and each method of the benchmark, runs in a process of its own, and the files are written after it, so that
neither a crash nor Ctrl-C loses what was measured before. What `make compiled` checks needs no GPU and is left out.
Exit code 1 when anything failed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lorafam.backends import selection, user_files

from . import junit
from .case import CASES
from .left_out import told
from .page import page
from .report import rows, table, write_json, write_text
from .run import DEFAULTS, NO_GPU, refuse_old_bitsandbytes

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
PACKAGES = ("lorafam", "torch", "triton", "bitsandbytes", "peft", "unsloth", "axolotl", "lorafusion")
INTERRUPTED = 130
SELF_CHECK = """
import json, torch
from lorafam.backends.self_check import verdict
found = verdict(torch.device("cuda", torch.cuda.current_device()))
if found.unchecked is not None:
    raise SystemExit(found.unchecked)
print(json.dumps(found.failures))
"""
TUNE = "from lorafam.cli.main import app; app()"
TUNE_MINUTES = 10
# several processes, since compiling the kernels takes longer than running them
TESTS = ("-n", "4", "--dist", "worksteal", "-m", "not compiled", "-o", "junit_family=xunit1")


def main() -> int:
    refuse_without_gpu()
    results: dict[str, Any] = {
        "complete": False,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "gpu": card(),
        "versions": versions(),
        "self_check": None,
        "tests": None,
        "tuned": None,
        "benchmark": {"rows": [], "failures": {}, "left_out": []},
    }
    path = RESULTS / f"{slug(results['gpu']['name'])}.json"
    path.parent.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(results, path, Path(folder))
    except KeyboardInterrupt:
        print(f"\ninterrupted; what was measured so far is in {path}")
        return INTERRUPTED
    print(f"\n{summary(results)}\n\nwritten to {path} and {path.with_suffix('.md').name}")
    return 1 if problems(results) else 0


def refuse_without_gpu() -> None:
    """SystemExit with one line where the kernels can't run."""
    if not (torch.cuda.is_available() and torch.version.cuda):
        raise SystemExit(f"gpu: {NO_GPU}")
    os.environ.pop(selection.VARIABLE, None)
    choice = selection.choose("cuda")
    if choice.backend != "triton":
        raise SystemExit(f"gpu: lorafam's kernels can't run here: {choice.reason}")
    refuse_old_bitsandbytes()
    if not (ROOT / "tests").is_dir():
        raise SystemExit("gpu: the tests aren't here: run it from a checkout of the repository (make gpu)")


def measure(results: dict[str, Any], path: Path, folder: Path) -> None:
    """Fills `results` part by part, and writes them after each."""
    write(path, results)
    # an empty folder, so that the GPU is checked anew
    environment = {**os.environ, user_files.CACHE_DIR: str(folder / "cache")}
    print("\nself-check: every op beside eager PyTorch", flush=True)
    results["self_check"] = checked(environment)
    write(path, results)
    print("\ntests", flush=True)
    results["tests"] = tested(folder / "tests.xml", environment)
    write(path, results)
    print("\ntune: launch configurations for this GPU", flush=True)
    results["tuned"] = tuned(environment)
    write(path, results)
    benchmarks: list[dict[str, Any]] = []
    for method in CASES:
        print(f"\nbenchmark: {method}", flush=True)
        found = benchmarked(method, folder / f"{method}.json", environment)
        benchmarks += found["benchmarks"]
        results["benchmark"]["rows"] = rows({"benchmarks": benchmarks})
        results["benchmark"]["failures"].update(found["failures"])
        known = results["benchmark"]["left_out"]
        # who isn't installed is told for each method
        known += [row for row in found["left_out"] if row not in known]
        write(path, results)
    results["complete"] = True
    write(path, results)


def write(path: Path, results: Mapping[str, Any]) -> None:
    """The JSON, and the page beside it."""
    write_json(path, results)
    write_text(path.with_suffix(".md"), page(results))


def checked(environment: Mapping[str, str]) -> dict[str, str]:
    """Path → why it is switched off on this GPU; a crash counts as one called "self-check"."""
    command = [sys.executable, "-c", SELF_CHECK]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stderr, end="")
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return {"self-check": ended(done.returncode, done.stderr)}


def tested(output: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """`junit.outcome` of the whole test suite; "error" says where it didn't come to its end."""
    code = run([sys.executable, "-m", "pytest", *TESTS, f"--junitxml={output}"], environment)
    try:
        found = junit.outcome(output)
    except ValueError:
        found = {"passed": 0, "failed": 0, "skipped": 0, "failures": {}}
    # pytest's own codes: 0 all passed, 1 some failed
    return found if code in (0, 1) and found["passed"] else {**found, "error": ended(code)}


def tuned(environment: Mapping[str, str]) -> dict[str, Any]:
    """The launch table of this GPU's user, measured for some minutes more: its path, rows, and how many those are;
    "error" says where that didn't come to its end.

    It lies in the user's own folder, to be of use afterwards; the parts that follow find a copy in theirs.
    """
    from lorafam.backends.triton_gpu.user_table import table_file

    shapes = [f"--shape={size},{size}" for size in DEFAULTS["cuda"]["sizes"]]
    tokens = [f"--tokens={count}" for count in DEFAULTS["cuda"]["tokens"]]
    command = [sys.executable, "-c", TUNE, "tune", f"--minutes={TUNE_MINUTES}", *shapes, *tokens]
    code = run(command, os.environ)
    path = table_file(torch.cuda.get_device_name())
    found: dict[str, Any] = {"path": str(path), "count": 0, "rows": {}, "paths": {}}
    if path.is_file() and code in (0, INTERRUPTED):
        table = json.loads(path.read_text(encoding="utf-8"))
        user_files.write_whole(Path(environment[user_files.CACHE_DIR]) / path.name, table)
        found |= {name: table[name] for name in ("rows", "paths", "points")}
        own = [row for part in ("rows", "paths") for rows in table[part].values() for row in rows]
        found["count"] = sum("shipped" not in row for row in own)
    return {**found, "error": ended(code)} if code else found


def benchmarked(method: str, output: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """pytest-benchmark's JSON of one method, with what failed its gate and who was left out."""
    command = [sys.executable, "-m", "lorafam.bench.run", "--device", "cuda", "--methods", method]
    code = run([*command, "--json", str(output)], environment)
    if not output.exists():
        return {"benchmarks": [], "failures": {method: ended(code)}, "left_out": []}
    found = json.loads(output.read_text(encoding="utf-8"))
    if code and not found["failures"]:
        found["failures"] = {method: ended(code)}
    return found


def run(command: list[str], environment: Mapping[str, str]) -> int:
    """Exit code of a part, which prints as it goes. On Ctrl-C, which it sees too, it gets the time to end by itself."""
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def ended(code: int, stderr: str = "") -> str:
    lines = stderr.strip().splitlines()
    return f"ended with code {code}" + (f": {lines[-1]}" if lines else "")


def problems(results: Mapping[str, Any]) -> list[str]:
    """What stands against a success, one line each; empty where there is nothing."""
    found = [f"self-check: {op}: {why}" for op, why in (results["self_check"] or {}).items()]
    tests = results["tests"] or {"error": "not run", "failures": {}}
    found += [f"{name}: {why}" for name, why in tests["failures"].items()]
    if "error" in tests:
        found.append(f"tests: {tests['error']}")
    tuned = results["tuned"] or {"error": "not run"}
    if "error" in tuned:
        found.append(f"tune: {tuned['error']}")
    found += [f"benchmark: {name}: {why}" for name, why in results["benchmark"]["failures"].items()]
    if not results["benchmark"]["rows"]:
        found.append("benchmark: nothing was measured")
    return found


def summary(results: Mapping[str, Any]) -> str:
    """Card, versions, counts, problems and the table."""
    gpu, tests = results["gpu"], results["tests"]
    lines = [
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['memory_bytes'] / 1e9:.0f} GB, "
        f"driver {gpu['driver'] or 'unknown'}",
        ", ".join(f"{name} {version or 'not installed'}" for name, version in results["versions"].items()),
        f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped",
        f"tuned: {results['tuned']['count']} rows of its own, in {results['tuned']['path']}",
        *(f"FAILED {problem}" for problem in problems(results)),
        *(f"left out: {told(row)}" for row in results["benchmark"]["left_out"]),
    ]
    benchmarks = [
        {"extra_info": {**row, "name": row["method"]}, "stats": {"median": row["median_seconds"]}}
        for row in results["benchmark"]["rows"]
    ]
    if benchmarks:
        dtype = results["benchmark"]["rows"][0]["dtype"]
        lines += ["", f"{dtype}; median ms of lorafam, and how many times as long the others take", ""]
        lines.append(table({"benchmarks": benchmarks}, digits=3))
    return "\n".join(lines)


def slug(name: str) -> str:
    """A card's name as a file's: "NVIDIA H100 80GB HBM3" → "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def card() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "driver": driver(),
    }


def driver() -> str | None:
    """The driver's version, as nvidia-smi tells it."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return lines[0] if lines else None


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


if __name__ == "__main__":
    sys.exit(main())
