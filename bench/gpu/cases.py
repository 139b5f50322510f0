"""What a part's module gives: cases, each of which is done, written down and never done again."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# what became of a case
PASSED, FAILED, ABORTED, HUNG, LEFT_OUT = "passed", "failed", "aborted", "hung", "left out"
BAD = (FAILED, ABORTED, HUNG)


class Case(NamedTuple):
    """`run` returns what is to be kept, as plain data, and raises where it is wrong. It isn't begun with less than
    `expects` seconds left, and is ended after `limit`. One that `resumes` goes on where it was cut off, and may be
    begun any number of times.
    """

    name: str
    run: Callable[[], dict[str, Any]]
    expects: float = 5
    limit: float = 120
    resumes: bool = False


class LeftOutError(Exception):
    """A case can't be done here; the message says what is missing."""


class Context(NamedTuple):
    """`folder` has the results of all items; `deadline` is `time.time()`'s."""

    folder: Path
    deadline: float
    record: Any


def cases_of(module: str, context: Context, options: dict[str, Any]) -> Iterator[Case]:
    return importlib.import_module(f"{__package__}.parts.{module}").cases(context, **options)
