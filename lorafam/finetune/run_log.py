"""log.jsonl: one JSON object a line, one line a step, in order.

    step                        optimiser steps done; step 0 is before training
    loss                        training loss of the step (nats a token), without AdaLoRA's penalty
    penalty                     that penalty, where there is one
    held_out_loss, held_out_standard_error   where it was evaluated at this step
    learning_rate, gradient_norm
    seconds, tokens_per_second  of the step, evaluation and saving not counted
    resident_memory             bytes, at the end of the step
    time                        ISO 8601, UTC

A line is written before the checkpoint of its step, and resuming drops the lines after the checkpoint: no step is
there twice or missing.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..files import write_text
from .memory import resident

Record = dict[str, Any]


class RunLog:
    """The records of a run, in memory and on disk."""

    def __init__(self, path: Path, *, resume_at: int | None = None) -> None:
        """Starts anew, or keeps the lines up to the step `resume_at`. A line cut short by a kill is dropped."""
        self.path = path
        self.records: list[Record] = []
        if resume_at is not None and path.exists():
            self.records = [record for record in read_log(path) if record["step"] <= resume_at]
        write_text(path, "".join(map(_line, self.records)))

    def write(self, record: Record) -> Record:
        """Adds the memory and the time to a record, appends it and returns it."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {**record, "resident_memory": resident(), "time": now}
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
        return record


def read_log(path: Path) -> list[Record]:
    """The records of a log, up to the first line that isn't whole."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(record, dict) or "step" not in record:
            break
        records.append(record)
    return records


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
