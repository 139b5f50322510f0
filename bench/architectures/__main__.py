"""`python -m lorafam.bench.architectures [NAME ...]`: the architectures named, else those that this code hasn't tried.

Results are kept in build/architectures and stand in the page until they are tried again. Exit code 1 where something
failed or didn't finish.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lorafam.files import write_json, write_text

from ..gpu.store import code_digest
from .page import failed, page
from .rows import BY_NAME, ROWS

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
Results = dict[str, dict[str, Any]]


def main(arguments: list[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="architectures", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BY_NAME, []], help="default: what this code hasn't tried")
    parser.add_argument("--minutes", type=float, default=10, help="after which an architecture is given up")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    folder = root / "build" / "architectures"
    folder.mkdir(parents=True, exist_ok=True)
    of = {"code": code(root), **versions()}
    results: Results = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in folder.glob("*.json")
        if path.stem in BY_NAME
    }
    wanted = options.names or [row.name for row in ROWS if results.get(row.name, {}).get("of") != of]
    with ThreadPoolExecutor(options.processes) as pool:
        for name, result in zip(
            wanted, pool.map(lambda name: tried(name, folder, options.minutes), wanted), strict=True
        ):
            results[name] = {**result, "of": of}
            write_json(folder / f"{name}.json", results[name])
    text = page(ROWS, results, of)
    write_text(root / "docs" / "architectures.md", text)
    bad = failed(ROWS, results)
    print("\n".join(f"not passed: {line}" for line in bad) or "all passed")
    return bool(bad)


def tried(name: str, folder: Path, minutes: float) -> dict[str, Any]:
    """A row's result, or {"error"} where its process doesn't end well."""
    file = folder / f".{name}.result"
    file.unlink(missing_ok=True)
    # which dense product runs isn't left to a clock, and two processes don't wait for one another's threads
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "LORAFAM_DENSE": "platform", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "lorafam.bench.architectures.one_row", name, str(file)]
    try:
        done = subprocess.run(
            command, env=variables, timeout=60 * minutes, stderr=subprocess.PIPE, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not finished in {minutes:g} minutes"}
    if done.returncode or not file.is_file():
        said = done.stderr.strip().splitlines() or [""]
        return {"error": f"exit code {done.returncode}: {said[-1]}"}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    return found


def code(root: Path) -> str:
    """Of lorafam's sources and of what is tried here."""
    here = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
    return hashlib.sha256(code_digest(root).encode() + here).hexdigest()[:12]


def versions() -> dict[str, str]:
    return {"Python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
