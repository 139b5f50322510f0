"""`python -m lorafam.bench.architectures.one_row NAME FILE`: one architecture in a process of its own."""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorafam.files import write_json

from .architecture import Architecture
from .columns import COLUMNS
from .models import WAYS, Made, Way, layers_of
from .outcome import REFUSED, WORKS, Outcome, failure
from .rows import BY_NAME


def tried(row: Architecture, ways: Sequence[Way] = WAYS, columns: Sequence[str] = tuple(COLUMNS)) -> dict[str, Any]:
    """{"layers": way → what is adapted, "columns": column → way → {"outcome", "why"}, "seconds"}."""
    began = time.monotonic()
    layers: dict[str, str] = {}
    outcomes: dict[str, dict[str, Outcome]] = {name: {} for name in columns if name != "generate" or row.generates}
    with tempfile.TemporaryDirectory() as folder:
        for way in ways:
            made = Made(row, way, Path(folder))
            try:
                layers[way.name] = layers_of(made)
            except Exception as error:
                for column in outcomes:
                    outcomes[column][way.name] = failure(row, way, column, error)
                continue
            for column in outcomes:
                outcomes[column][way.name] = outcome(made, column)
    return {"layers": layers, "columns": outcomes, "seconds": time.monotonic() - began}


def outcome(made: Made, column: str) -> Outcome:
    """What came of one column."""
    try:
        COLUMNS[column](made)
    except Exception as error:
        return failure(made.row, made.way, column, error)
    return {"outcome": WORKS, "why": ""}


def told(result: Mapping[str, Any]) -> str:
    """What didn't work, a line each."""
    return "\n".join(
        f"  {column}, {way}: {one['outcome']}: {one['why']}"
        for column, ways in result["columns"].items()
        for way, one in ways.items()
        if one["outcome"] not in (WORKS, REFUSED)
    )


def main(arguments: Sequence[str]) -> None:
    import transformers

    name, file = arguments
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    result = tried(BY_NAME[name])
    print(f"{name}: {result['seconds']:.0f} s\n{told(result)}".rstrip(), flush=True)
    write_json(Path(file), result)


if __name__ == "__main__":
    main(sys.argv[1:])
