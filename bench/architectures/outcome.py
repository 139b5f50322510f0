"""What came of a column: it works, it is refused rightly, or it fails."""

from __future__ import annotations

import traceback
from pathlib import Path

from .architecture import Architecture
from .models import Way

Outcome = dict[str, str]
WORKS, REFUSED, FAILS = "works", "refused", "fails"
_LONGEST = 300


def failure(row: Architecture, way: Way, column: str, error: Exception) -> Outcome:
    """A refusal that the row knows, or a failure with the place it comes from."""
    text = " ".join(str(error).split())
    for known in row.refused:
        here = (not known.ways or way.name in known.ways) and (not known.columns or column in known.columns)
        if here and known.words in text:
            return {"outcome": REFUSED, "why": known.reason}
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    return {"outcome": FAILS, "why": f"{type(error).__name__} ({where}): {text[:_LONGEST]}"}
