"""Regular expressions on modules' paths. One that may take forever is tried in a process that can be ended."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterable

# seconds that an expression has for all paths of a model
PATIENCE = 20.0
# with so few repetitions, none inside another, a path takes microseconds
_HARMLESS = 3
_PROGRAM = """
import json, re, sys
expression, paths = json.load(sys.stdin)
json.dump([path for path in paths if re.fullmatch(expression, path)], sys.stdout)
"""


def matched(expression: str, paths: Iterable[str], argument: str) -> set[str]:
    """The paths that `expression` matches whole.

    Raises ValueError, beginning with the `argument`, for one that takes more than `PATIENCE` seconds.
    """
    return set(_matched(expression, tuple(paths), argument))


@functools.lru_cache(maxsize=256)
def _matched(expression: str, paths: tuple[str, ...], argument: str) -> frozenset[str]:
    if _is_harmless(expression):
        compiled = re.compile(expression)
        return frozenset(path for path in paths if compiled.fullmatch(path))
    try:
        answer = subprocess.run(
            [sys.executable, "-I", "-c", _PROGRAM],
            input=json.dumps([expression, paths]),
            capture_output=True,
            check=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{argument}: matching {expression!r} takes more than {PATIENCE:g} s, write it with fewer repetitions"
        ) from None
    return frozenset(json.loads(answer.stdout))


def _is_harmless(expression: str) -> bool:
    repeated = len(re.findall(r"[*+{]", expression))
    return repeated <= _HARMLESS and re.search(r"\)[*+{]", expression) is None
