"""`make peft-suite`: PEFT's own tests, from its source distribution, with every layer accelerated, and plain those that
don't pass so.

PEFT_SUITE=quick takes a few files. Exit code 1 where a test passes plain and doesn't accelerated, where a file can't be
imported, or where nothing was accelerated.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from lorafam.files import write_json

from .compare import Comparison, Outcome, compare, doubtful
from .files import LEFT_OUT, chosen
from .hub import make_models
from .known import KNOWN
from .sources import unpacked

BUILD = Path(__file__).parent.parent.parent / "build" / "peft-suite"
PYTEST = ("-m", "pytest", "-p", f"{__package__}.plugin", "-p", "no:cacheprovider", "-n", "2", "--dist", "worksteal")
QUIET = ("--continue-on-collection-errors", "-q", "--disable-warnings", "--tb=line", "--no-header", "--show-capture=no")


def main() -> int:
    quick = os.environ.get("PEFT_SUITE") == "quick"
    folder = unpacked(BUILD)
    make_models(BUILD / "hub")
    files = chosen(folder, quick)
    accelerated = outcomes(folder, files, accelerate=True)
    again = doubtful(accelerated)
    files = list(dict.fromkeys(name.partition("::")[0] for name in again))
    plain = outcomes(folder, files, accelerate=False, only=again) if again else {}
    found = compare(plain, accelerated, KNOWN)
    print(report(found, {} if quick else LEFT_OUT))
    return 1 if found.broken or found.absent or not found.forwards else 0


def outcomes(folder: Path, files: list[str], accelerate: bool, only: list[str] | None = None) -> dict[str, Outcome]:
    """What became of each test, of those named in `only` alone where given; SystemExit where pytest didn't come to its
    end.
    """
    kind = "accelerated" if accelerate else "plain"
    output, log = folder / f"{kind}.json", folder / f"{kind}.log"
    output.unlink(missing_ok=True)
    # two processes of two threads each would wait for one another
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(BUILD / "hub")}
    options = [f"--outcomes={output}", *["--accelerate"] * accelerate]
    if only is not None:
        named = folder / "only.json"
        write_json(named, only)
        options.append(f"--only={named}")
    command = [sys.executable, *PYTEST, *QUIET, *options, *files]
    tests = "all tests" if only is None else f"{len(only)} tests"
    print(f"{kind}: {tests} in {len(files)} files of {folder.name}", flush=True)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(
            command, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False
        ).returncode
    # pytest's own codes: 0 all passed, 1 some failed
    if code not in (0, 1) or not output.exists():
        raise SystemExit(f"peft-suite: the {kind} run ended with code {code}: see {log}")
    print(f"  {time.monotonic() - start:.0f} s; what failed is in {log}", flush=True)
    return {name: Outcome(*fields) for name, fields in json.loads(output.read_text(encoding="utf-8")).items()}


def report(verdict: Comparison, left_out: Mapping[str, str]) -> str:
    """A short table, and by name what differs; `left_out`: files and why."""
    rows = (
        ("tests run accelerated", verdict.run),
        ("passed", verdict.passed),
        ("passed plain alone", len(verdict.broken) + len(verdict.known)),
        ("layers accelerated", verdict.layers),
        ("forwards on lorafam's paths", verdict.forwards),
    )
    lines = ["", *(f"{name:<28}{count:>8}" for name, count in rows)]
    for why in dict.fromkeys(left_out.values()):
        lines.append(f"left out, {why}: {', '.join(name for name, own in left_out.items() if own == why)}")
    lines += [f"known to differ: {name}: {why}" for name, why in verdict.known.items()]
    lines += [f"NOT IMPORTED {name}: {why}" for name, why in verdict.absent.items()]
    lines += [f"FAILED accelerated alone: {name}: {why}" for name, why in verdict.broken.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
