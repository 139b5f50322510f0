"""`python -m lorafam.bench.versions [ROW ...]`: the rows named, else all; `fast`: those of every submission.

A row's results are kept in bench/versions/results, with the day and the commit, and stand in the page until it is run
again; `--failed` tries what failed in it again, and the page says how many passed then, and at which commit. Exit code
1 where something failed or didn't finish.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lorafam.files import write_json, write_text

from .environment import Environment
from .matrix import FAST, FAST_ARCHITECTURES, ROWS, Row
from .page import failed, page
from .parts import PARTS, merged, run, run_again

ROOT = Path(__file__).parents[2]


def main(arguments: list[str], root: Path = ROOT) -> int:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="versions", description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[*names, "fast", []], help="default: all")
    parser.add_argument("--minutes", type=float, default=60, help="after which a part is given up")
    parser.add_argument("--failed", action="store_true", help="of the tests only those that failed when last tried")
    options = parser.parse_args(arguments)
    wanted = [name for row in options.rows for name in (FAST if row == "fast" else (row,))] or names
    environments, kept = root / "build" / "versions", root / "bench" / "versions" / "results"
    # a part of the rows, tried for a submission, is no page
    fast = options.rows == ["fast"]
    kept.mkdir(parents=True, exist_ok=True)
    files = {row.name: kept / f"{row.name}.json" for row in ROWS}
    results = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    for row in ROWS:
        if row.name in wanted:
            print(f"{row.name}: {', '.join(f'{name} {version}' for name, version in row.packages.items())}", flush=True)
            environment = Environment(row, environments / row.name)
            if fast:
                environment.variables["LORAFAM_ARCHITECTURES"] = FAST_ARCHITECTURES
            if options.failed:
                results[row.name] = tried_again(results.get(row.name, {}), environment, root, options.minutes)
            else:
                results[row.name] = {**tried(row, environment, root, options.minutes), "at": _at(root)}
            if not fast:
                write_json(files[row.name], results[row.name])
    text = page(ROWS, results)
    print(text)
    if not fast:
        write_text(root / "docs" / "versions.md", text)
    bad = failed([row for row in ROWS if row.name in wanted], results)
    print("\n".join(f"not passed: {line}" for line in bad) or "all passed")
    return bool(bad)


def tried(row: Row, environment: Environment, root: Path, minutes: float) -> dict[str, Any]:
    """{"versions", "columns"}, or {"error"} where it has no environment."""
    try:
        environment.make(root)
        versions = environment.versions()
    except RuntimeError as error:
        return {"error": str(error)}
    columns: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        if set(part.columns) & set(row.runs):
            for column, outcome in run(part, environment, root, minutes).items():
                columns[column] = merged(columns.get(column), outcome)
    return {"versions": versions, "columns": columns}


def tried_again(before: dict[str, Any], environment: Environment, root: Path, minutes: float) -> dict[str, Any]:
    """`before`, with what the tests that failed there say now. Nothing changes where the versions are others, or where
    a test doesn't come to its end.
    """
    column = before.get("columns", {}).get("tests", {})
    if not column.get("failures"):
        return before
    try:
        environment.make(root)
        if environment.versions() != before["versions"]:
            raise RuntimeError("other versions than those that were tried: try the whole row")
        good, _ = run_again(column["failures"], environment, root, minutes)
    except (RuntimeError, ValueError) as error:
        print(f"not tried again: {error}")
        return before
    good &= column["failures"].keys()
    failures = {name: why for name, why in column["failures"].items() if name not in good}
    again = {
        **column,
        "passed": column["passed"] + len(good),
        "failed": len(failures),
        "failures": failures,
        "again": column.get("again", 0) + len(good),
    }
    columns = {**before["columns"], "tests": again}
    return {**before, "columns": columns, "again_at": _at(root)}


def _at(root: Path) -> str:
    """The day, and the commit that was tried; "+" behind it where files differ from it."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return " ".join([datetime.date.today().isoformat(), done.stdout.strip()]).strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
