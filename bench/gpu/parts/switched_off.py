"""What the self-check would have left, where it took its process down: the paths that were found bad one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..cases import BAD, Case, Context
from ..device import device
from ..plan import CHECKED_OPS
from ..store import Record
from .op import titled


def cases(context: Context) -> Iterator[Case]:
    yield Case("kept", lambda: kept(context))


def kept(context: Context) -> dict[str, Any]:
    """Writes the self-check's result if there is none, so that no later process has to go through the same."""
    from lorafam.backends import eager, self_check
    from lorafam.backends.self_check_cases import Draw
    from lorafam.backends.triton_gpu.call_paths import paths_of

    model = device().card()["name"]
    path = self_check.result_file(model)
    before = self_check.kept_result(path)
    if before is not None and before.complete:
        return {"file": str(path), "written": False}
    failures = {} if before is None else dict(before.failures)
    draw = Draw(0, eager, device().where)
    for op in CHECKED_OPS:
        record = Record(context.folder / f"check/op-{op}.json").cases
        for title, case in titled(op):
            if title in record and record[title]["outcome"] in BAD:
                name = paths_of(op, case.make(draw))[0]
                failures.setdefault(name, f"{title}: {record[title]['outcome']}: {record[title].get('why', '')}")
    self_check.keep_result(path, self_check.KeptVerdicts(failures, complete=True))
    return {"file": str(path), "written": True, "switched_off": failures}
