"""What went wrong, in a line: what `explain`, the doctor and tables of results show of an error."""

from __future__ import annotations

import re

# how Triton begins where it only says where: "at 75:8:", the source above it, then what is wrong or nothing
_PLACE = re.compile(r"at \d+:\d+:$")


def told(error: BaseException) -> str:
    """The class of an error and what it says first, at most 500 characters.

    Triton's compiler says where first, once for each function on the way in: of the innermost what it says last.
    """
    lines = _lines(error)
    while error.__cause__ is not None and _is_place(lines):
        error = error.__cause__
        lines = _lines(error)
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {lines[-1 if _is_place(lines) else 0][:500]}"


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()]


def _is_place(lines: list[str]) -> bool:
    return bool(lines) and _PLACE.match(lines[0]) is not None
