"""(kernel, architecture, dtype, tokens, how W is read) → LaunchConfig, from `tuned/*.json`.

A file holds rows by kernel, first match first: {"tokens": at most, "dtypes": [...], "weights": [...], "architectures":
[...], "blocks": {...}, "num_warps": w, "num_stages": s}; what a row leaves out matches anything. Which file: nvidia,
amd or interpreter. W is read dense, packed (four codes at a time) or by elements (one code at a time).
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from .launch_config import INTERPRETER, MFMA, MMA, TCGEN05, WGMMA, LaunchConfig

NVIDIA, AMD = "nvidia", "amd"
DENSE, PACKED, ELEMENTS = "dense", "packed", "elements"

_FOLDER = Path(__file__).parent / "tuned"


def machine_of(architecture: str) -> str:
    """The kind of machine of an architecture: sm_80 … are NVIDIA's, gfx942 … AMD's."""
    if architecture == INTERPRETER:
        return INTERPRETER
    return NVIDIA if architecture.startswith("sm_") else AMD


def target_of(architecture: str) -> str:
    """The tensor cores of an architecture."""
    if architecture == INTERPRETER:
        return INTERPRETER
    if machine_of(architecture) == AMD:
        return MFMA
    return {"sm_90": WGMMA, "sm_100": TCGEN05, "sm_103": TCGEN05}.get(architecture, MMA)


@functools.cache
def rows(machine: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of every kernel for a kind of machine."""
    return json.loads((_FOLDER / f"{machine}.json").read_text(encoding="utf-8"))


@functools.cache
def launch_config(
    kernel: str, architecture: str, dtype: str, tokens: int = 0, weight: str | None = None
) -> LaunchConfig:
    """The first row that fits. `dtype` is the name of the wide operand's ("bfloat16", "float16", "float32"), `weight`
    how W is read.
    """
    for row in rows(machine_of(architecture))[kernel]:
        fits = tokens <= row.get("tokens", tokens)
        fits = fits and dtype in row.get("dtypes", [dtype])
        fits = fits and weight in row.get("weights", [weight])
        fits = fits and architecture in row.get("architectures", [architecture])
        if fits:
            blocks = tuple(sorted(row["blocks"].items()))
            return LaunchConfig(blocks, row.get("num_warps", 4), row.get("num_stages", 1), target_of(architecture))
    raise LookupError(f"no configuration of {kernel} for {architecture}, {dtype}, {tokens} tokens, {weight} weight")
