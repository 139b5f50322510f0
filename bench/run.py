"""`make bench`: times every method against eager PyTorch and PEFT + bitsandbytes, after a correctness gate.

pytest-benchmark measures; this chooses what, and prints the table. Exit code 1 when a case fails its gate.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from . import junit
from .contenders import CASES, CONTENDERS
from .report import table, write_json

CASE_FOLDER = Path(__file__).parent / "cases"
DEFAULTS = {
    "cpu": {"sizes": [2048, 4096], "tokens": [1, 16, 128], "dtype": "float32"},
    "cuda": {"sizes": [4096, 8192], "tokens": [1, 16, 128, 2048], "dtype": "bfloat16"},
}
NO_GPU = "expected a CUDA GPU, torch finds none"


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


def contenders() -> list[str]:
    """Those that can run here; the others are named with the reason."""
    missing = [name for name in ("peft", "bitsandbytes") if importlib.util.find_spec(name) is None]
    if "bitsandbytes" in missing:
        raise SystemExit("bench: eager PyTorch decodes with bitsandbytes, which is not installed (extra: bench)")
    if missing:
        print(f"PEFT is left out: {', '.join(missing)} not installed")
        return [name for name in CONTENDERS if name != "peft"]
    return list(CONTENDERS)


def machine(device: str) -> str:
    """What the figures are of."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit(f"bench: {NO_GPU}")
    plan = {
        "device": options.device,
        "sizes": options.sizes,
        "tokens": options.tokens,
        "methods": options.methods,
        "dtype": options.dtype,
        "rank": options.rank,
        "seconds": options.seconds,
        "contenders": contenders(),
    }
    packages = ("torch", "triton" if on_gpu else "numba", "bitsandbytes", *plan["contenders"][2:])
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"{machine(options.device)}; {versions}")
    print(f"{options.dtype}, rank {options.rank}; median ms of lorafam, and how many times as long the others take\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        output, outcome = Path(folder) / "results.json", Path(folder) / "outcome.xml"
        command = [sys.executable, "-m", "pytest", str(CASE_FOLDER), "-q", "--no-header", "-p", "no:cacheprovider"]
        command += [f"--benchmark-json={output}", "--benchmark-quiet", "--benchmark-columns=median", "-o", "testpaths="]
        command += [f"--junitxml={outcome}", "--tb=short"]
        code = subprocess.run(
            command,
            env={**os.environ, "LORAFAM_BENCH_PLAN": json.dumps(plan)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if not outcome.exists():
            print(code.stdout)
            return code.returncode or 1
        # pytest-benchmark writes none where no case passed
        results = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {"benchmarks": []}
        results["failures"] = junit.outcome(outcome)["failures"]
        if options.json:
            write_json(options.json, results)
    print(table(results, digits=3 if on_gpu else 2))
    if code.returncode:
        print(f"\nFAILED: not every case passed its gate, or ran\n{code.stdout}")
    return code.returncode


if __name__ == "__main__":
    sys.exit(main())
