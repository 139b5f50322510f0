"""All items' records as one: what the page is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lorafam.files import write_json, write_text

from ..page import page
from .cases import BAD
from .store import RUN, Record

SUMMARY, PAGE = "summary.json", "page.md"


def gathered(folder: Path, left: Sequence[str]) -> dict[str, Any]:
    """Writes `summary.json` and `page.md` beside the records, and returns the summary; `left`: items not finished."""
    found = {**summary(folder), "left": list(left)}
    write_json(folder / SUMMARY, found)
    write_text(folder / PAGE, page(found))
    return found


def summary(folder: Path) -> dict[str, Any]:
    """The run, and its items' cases by name."""
    run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    items = {}
    for path in sorted(folder.glob("*/*.json")):
        if path.parent.name.startswith(("run-", "user-")):
            continue
        record = Record(path)
        items[f"{path.parent.name}/{path.stem}"] = {"finished": record.finished, "cases": record.cases}
    return {**run, "items": items}


def problems(folder: Path, names: Iterable[str]) -> list[str]:
    """What stands against a success, one line each."""
    found = []
    for name in names:
        for case, result in Record(folder / f"{name}.json").cases.items():
            if result["outcome"] in BAD:
                found.append(f"{name}: {case}: {result['outcome']}: {result.get('why', '')}")
    return found
