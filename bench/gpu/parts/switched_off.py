"""What the self-check would have left, where it took its process down: the ops that were found bad one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..cases import BAD, Case, Context
from ..device import device
from ..plan import CHECKED_OPS
from ..store import Record


def cases(context: Context) -> Iterator[Case]:
    yield Case("kept", lambda: kept(context))


def kept(context: Context) -> dict[str, Any]:
    """Writes the self-check's file if it isn't there, so that no later process has to go through the same."""
    from lorafam.backends.user_files import user_file, write_whole

    path = user_file("checked", device().card()["name"], ("lorafam", "torch", "triton"))
    if path.is_file():
        return {"file": str(path), "written": False}
    found = {}
    for op in CHECKED_OPS:
        bad = {
            name: case
            for name, case in Record(context.folder / f"check/op-{op}.json").cases.items()
            if case["outcome"] in BAD
        }
        if bad:
            name, case = next(iter(bad.items()))
            found[op] = f"{name}: {case['outcome']}: {case.get('why', '')}"
    write_whole(path, found)
    return {"file": str(path), "written": True, "switched_off": found}
