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

from .contenders import CASES, CONTENDERS
from .report import table

CASE_FOLDER = Path(__file__).parent / "cases"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lorafam.bench.run", description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096], help="in and out features")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--methods", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of x and the dense weight")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement, at least 5 rounds")
    parser.add_argument("--json", type=Path, help="also write pytest-benchmark's JSON here")
    return parser.parse_args(given)


def contenders() -> list[str]:
    """Those that can run here; the others are named with the reason."""
    missing = [name for name in ("peft", "bitsandbytes") if importlib.util.find_spec(name) is None]
    if "bitsandbytes" in missing:
        raise SystemExit("bench: eager PyTorch decodes with bitsandbytes, which is not installed (extra: bench)")
    if missing:
        print(f"PEFT is left out: {', '.join(missing)} not installed")
        return [name for name in CONTENDERS if name != "peft"]
    return list(CONTENDERS)


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    plan = {
        "sizes": options.sizes,
        "tokens": options.tokens,
        "methods": options.methods,
        "dtype": options.dtype,
        "rank": options.rank,
        "seconds": options.seconds,
        "contenders": contenders(),
    }
    packages = ("torch", "numba", "bitsandbytes", *plan["contenders"][2:])
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"{processor()}, {torch.get_num_threads()} threads; {versions}")
    print(f"{options.dtype}, rank {options.rank}; median ms of lorafam, and how many times as long the others take\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        command = [sys.executable, "-m", "pytest", str(CASE_FOLDER), "-q", "--no-header", "-p", "no:cacheprovider"]
        command += [f"--benchmark-json={output}", "--benchmark-quiet", "--benchmark-columns=median", "-o", "testpaths="]
        code = subprocess.run(
            [*command, "--tb=short"],
            env={**os.environ, "LORAFAM_BENCH_PLAN": json.dumps(plan)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if not output.exists():
            print(code.stdout)
            return code.returncode or 1
        results = json.loads(output.read_text(encoding="utf-8"))
        if options.json:
            temporary = options.json.with_name(f".{options.json.name}.{os.getpid()}")
            temporary.write_text(json.dumps(results, indent=1), encoding="utf-8")
            temporary.replace(options.json)
    print(table(results))
    if code.returncode:
        print(f"\nFAILED: not every case passed its gate, or ran\n{code.stdout}")
    return code.returncode


if __name__ == "__main__":
    sys.exit(main())
