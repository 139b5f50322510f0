"""Parameters of tensor descriptors as ptxsim passes them: Triton 3.7 added a second flag (whether fp32 is rounded to
tf32) behind that of the padding, which kernels of 3.6 don't have.
"""

from __future__ import annotations

import functools
import re

_ENTRY = re.compile(r"(\.entry \w+\()(.*?)(\n\))", re.DOTALL)
_FLAG = ".param .u8 "


@functools.lru_cache(64)
def with_both(ptx: str) -> str:
    """`ptx` with a second flag, which nothing reads, behind every one that is alone."""
    return _ENTRY.sub(lambda found: found[1] + ",".join(_doubled(found[2].split(","))) + found[3], ptx)


def _doubled(parameters: list[str]) -> list[str]:
    given = []
    for index, parameter in enumerate(parameters):
        given.append(parameter)
        beside = [*parameters[max(index - 1, 0) : index], *parameters[index + 1 : index + 2]]
        if _FLAG in parameter and not any(_FLAG in other for other in beside):
            given.append(f"{parameter}_second")
    return given
