"""The process of one item: `python -m lorafam.bench.gpu.worker MODULE OPTIONS FOLDER RECORD DEADLINE PARENT`.

Before a case it writes that it begins, after it what became of it. It ends by itself when the time is up, when the GPU
no longer answers, or with all cases done.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from lorafam.backends.processes import die_with_parent
from lorafam.backends.told import told

from .cases import FAILED, LEFT_OUT, PASSED, Case, Context, LeftOutError, cases_of
from .store import Record

# exit codes: all cases are done; the time is up; the GPU must be started anew
DONE, LATER, LOST = 0, 75, 76


def main(arguments: list[str]) -> int:
    module, options, folder, record_path, deadline, parent = arguments
    die_with_parent()
    if os.getppid() != int(parent):
        # it ended before this could be said
        return LATER
    record = Record(Path(record_path))
    context = Context(Path(folder), float(deadline), record)
    chosen = json.loads(options)
    # this run's own self-check and launch table, not those of whoever runs it
    os.environ["LORAFAM_CACHE_DIR"] = str(context.folder / f"user-{chosen.get('table', 'untuned')}")
    for case in cases_of(module, context, chosen):
        if case.name in record.cases:
            continue
        if time.time() + case.expects > context.deadline:
            return LATER
        if not done(case, record):
            return LOST
    record.finish()
    return DONE


def done(case: Case, record: Record) -> bool:
    """Does a case and writes it down; False where the GPU no longer answers, which is the case's own failure."""
    from .device import device

    if case.resumes:
        record.attempts = 0
    record.begin(case.name, min(case.limit, device().longest or case.limit))
    start = time.perf_counter()
    try:
        details = case.run()
        # a launch's own failure shows here
        device().synchronize()
        outcome = PASSED
    except LeftOutError as error:
        outcome, details = LEFT_OUT, {"why": str(error)}
    except Exception as error:
        outcome, details = FAILED, {"why": told(error)}
    details = {**details, "seconds": round(time.perf_counter() - start, 3)}
    alive = True
    if outcome == FAILED:
        try:
            device().synchronize()
        except Exception as error:
            alive, details["lost"] = False, told(error)
    record.end(case.name, outcome, **details)
    return alive


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
