"""`make bench`: times every method against eager PyTorch and PEFT + bitsandbytes, after a correctness gate; on a GPU
also against the dense product and the other projects that are installed.

pytest-benchmark measures; this chooses what, and prints the table. Exit code 1 when lorafam fails a case; whoever else
does is left out of it, with the reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version

from lorafam.backends.numba_cpu.processor import model_name
from lorafam.files import write_json

from . import junit
from .case import CASES
from .contenders import PEERS, TITLES
from .left_out import Row, shared_out, told
from .report import table

CASE_FOLDER = Path(__file__).parent / "cases"
DEFAULTS = {
    "cpu": {"sizes": [2048, 4096], "tokens": [1, 16, 128], "dtype": "float32"},
    "cuda": {"sizes": [4096, 8192], "tokens": [1, 16, 128, 2048], "dtype": "bfloat16"},
}
NO_GPU = "expected a CUDA GPU, torch finds none"
# as the extra `bench` asks for; the GPU's torch may come with an older one
BITSANDBYTES = "0.50"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lorafam.bench.run", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=list(DEFAULTS), default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", help="in and out features")
    parser.add_argument("--tokens", type=int, nargs="+")
    parser.add_argument("--methods", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of x and the dense weight")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement, at least 5 rounds")
    parser.add_argument("--json", type=Path, help="also write pytest-benchmark's JSON here, with what failed")
    options = parser.parse_args(given)
    for name, value in DEFAULTS[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def contenders(device: str, methods: Sequence[str]) -> tuple[list[str], list[str], list[Row]]:
    """Those that can run here, in one process and in one each, and who is left out and why, which is told.

    Eager PyTorch and PEFT read 4-bit weights with bitsandbytes.
    """
    decoder = ["bitsandbytes"] if any(CASES[method][1] for method in methods) else []
    wanted = ["lorafam", "eager", "peft", *(["dense", *PEERS] if device == "cuda" else [])]
    lacking = {"eager": absent(decoder), "peft": absent(["peft", *decoder])}
    lacking |= {name: peer.missing() for name, peer in PEERS.items()}
    left_out = [
        {"contender": name, "reason": f"{', '.join(lacking[name])} not installed"}
        for name in wanted
        if lacking.get(name)
    ]
    for row in left_out:
        print(f"{TITLES[row['contender']]} is left out: {row['reason']}")
    able = [name for name in wanted if not lacking.get(name)]
    return [name for name in able if name not in PEERS], [name for name in able if name in PEERS], left_out


def absent(packages: Sequence[str]) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def refuse_old_bitsandbytes() -> None:
    """SystemExit where what is installed is older than what lorafam is compared with on a GPU."""
    if absent(["bitsandbytes"]):
        return
    found = version("bitsandbytes")
    if Version(found) < Version(BITSANDBYTES):
        raise SystemExit(f"bench: expected bitsandbytes >= {BITSANDBYTES} on a GPU, got {found}")


def machine(device: str) -> str:
    """What the figures are of."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{model_name()}, {torch.get_num_threads()} threads"


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit(f"bench: {NO_GPU}")
    together, alone, left_out = contenders(options.device, options.methods)
    if on_gpu:
        refuse_old_bitsandbytes()
    packages = ["torch", "triton" if on_gpu else "numba", "bitsandbytes", *(["peft"] if "peft" in together else [])]
    lacking = absent(packages)
    versions = [f"{name} {version(name)}" for name in packages if name not in lacking]
    versions += [f"{name} {PEERS[name].version()}" for name in alone]
    print(f"{machine(options.device)}; {', '.join(versions)}")
    print(f"{options.dtype}, rank {options.rank}; median ms of lorafam, and how many times as long the others take\n")
    sys.stdout.flush()
    plan = {name: value for name, value in vars(options).items() if name != "json"}
    results = timed({**plan, "contenders": together})
    results["left_out"] = left_out + results["left_out"]
    for name in alone:
        methods = [method for method in options.methods if method in PEERS[name].cases]
        if methods:
            found = timed({**plan, "contenders": [name], "methods": methods})
            results["benchmarks"] += found["benchmarks"]
            results["left_out"] += found["left_out"]
    if options.json:
        write_json(options.json, results)
    print(table(results, digits=3 if on_gpu else 2))
    for row in results["left_out"]:
        print(f"left out: {told(row)}")
    if results["failures"]:
        failed = [f"{name}: {reason}" for name, reason in results["failures"].items()]
        print("\n".join(["\nFAILED: not every case passed its gate, or ran", *failed]))
    return 1 if results["failures"] else 0


def timed(plan: dict[str, Any]) -> dict[str, Any]:
    """pytest-benchmark's JSON of a plan, run in a process of its own, with "failures" (name → reason) and "left_out" (a
    row a case that another than lorafam failed).
    """
    with tempfile.TemporaryDirectory() as folder:
        output, outcome = Path(folder) / "results.json", Path(folder) / "outcome.xml"
        command = [sys.executable, "-m", "pytest", str(CASE_FOLDER), "-q", "--no-header", "-p", "no:cacheprovider"]
        command += [f"--benchmark-json={output}", "--benchmark-quiet", "--benchmark-columns=median", "-o", "testpaths="]
        command += [f"--junitxml={outcome}", "--tb=short"]
        done = subprocess.run(
            command,
            env={**os.environ, "LORAFAM_BENCH_PLAN": json.dumps(plan)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        # pytest-benchmark writes none where no case passed
        results = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {"benchmarks": []}
        failed = junit.outcome(outcome)["failures"] if outcome.exists() else {}
    # pytest's own codes: 0 all passed, 1 some failed
    if done.returncode not in (0, 1) or (done.returncode and not failed):
        failed = {" ".join(plan["methods"]): f"ended with code {done.returncode}"}
    shared = shared_out(failed, plan["contenders"])
    if shared["failures"]:
        print(done.stdout)
    return {**results, **shared}


if __name__ == "__main__":
    sys.exit(main())
