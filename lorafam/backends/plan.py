"""What a backend would run for a product, as `explain` tells it."""

from __future__ import annotations

from typing import NamedTuple


class Plan(NamedTuple):
    """`path`: what is computed: on a GPU "decode" (one tile of few tokens), "tiles" or "staged", on the CPU "registers"
    (few tokens), "tiles", "panels" or "dense". `configuration`: of its kernel.

    Of GPU kernels also `bytes` read and written, what a cache answers left out; `flops`; `modelled_seconds` by the
    GPU's roofline, None where its limits aren't known.
    """

    path: str
    configuration: str | None = None
    bytes: int | None = None
    flops: int | None = None
    modelled_seconds: float | None = None
