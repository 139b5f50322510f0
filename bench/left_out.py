"""What isn't in the figures, and why: rows of a contender and a reason, and the case where it is one case alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .contenders import TITLES

Row = dict[str, Any]
KEYS = ("method", "size", "tokens", "direction", "contender")


def shared_out(failed: Mapping[str, str], contenders: list[str]) -> dict[str, Any]:
    """What failed as "failures" and "left_out": only lorafam's, or a run's that it is part of, is a failure."""
    failures, left_out = {}, []
    for name, reason in failed.items():
        case = case_of(name)
        if case.get("contender", contenders[0]) == "lorafam":
            failures[name] = reason
        else:
            left_out.append({"contender": contenders[0], **case, "reason": reason})
    return {"failures": failures, "left_out": left_out}


def case_of(name: str) -> Row:
    """From a test's name: "…::test_layer[qlora-4096-16-forward-unsloth]"; empty for what isn't one."""
    values = name.rpartition("[")[2].rstrip("]").split("-")
    if len(values) != len(KEYS):
        return {}
    case: Row = dict(zip(KEYS, values, strict=True))
    return {**case, "size": int(case["size"]), "tokens": int(case["tokens"])}


def told(row: Row) -> str:
    """A row of "left_out" as a line."""
    where = f" {row['method']} {row['size']} x {row['tokens']} {row['direction']}" if "method" in row else ""
    return f"{TITLES[row['contender']]}{where}: {row['reason']}"
