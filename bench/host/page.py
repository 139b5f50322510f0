"""The rows as a page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

import torch

from lorafam.backends.numba_cpu.processor import model_name

from ..page import grid
from .chains import FEATURES, LAYERS, RANK
from .counted import Launches
from .stubs import ARCHITECTURE

HEAD = f"""# The host's part of a layer on a GPU

Written by `python -m lorafam.bench.host --page docs/host.md`. Modelled: there is no GPU in it. Everything above the
driver runs as it would with one: Python, torch's dispatcher and autograd, Triton's launcher, with lorafam's kernels
compiled for {ARCHITECTURE}. Left out is what the driver does for a launch (2 to 3 µs each on a GPU), for lorafam's
kernels and bitsandbytes'; torch's operations run on the CPU over small tensors (at 2,048 tokens those on elements take
longer than a launch), its products do nothing.

µs: a layer's share of a chain of {LAYERS} forward + backward, the least of many; bf16, rank {RANK}, {FEATURES}
features, one thread. Kernels: launches of a forward and of a backward, an operation of torch or bitsandbytes counted as
one; in brackets those among lorafam's that are torch's.
"""


class Row(NamedTuple):
    """A layer, or a group of three, at a number of tokens; launches of forward and backward."""

    name: str
    tokens: int
    ours: float
    theirs: float
    our_launches: tuple[Launches, Launches]
    their_launches: tuple[Launches, Launches]


def page(rows: Sequence[Row]) -> str:
    """Markdown."""
    names = ["layer", "tokens", "lorafam, µs", "PEFT + bitsandbytes, µs", "times as long", "kernels", "PEFT's kernels"]
    machine = f"{model_name()}, {date.today()}, torch {torch.__version__}."
    return "\n".join([HEAD, machine, "", grid(names, map(_cells, rows)), ""])


def _cells(row: Row) -> list[str]:
    ours = " + ".join(f"{one.all} ({one.others})" for one in row.our_launches)
    theirs = " + ".join(str(one.all) for one in row.their_launches)
    times = [f"{row.ours:.0f}", f"{row.theirs:.0f}", f"{row.theirs / row.ours:.2f}"]
    return [row.name, str(row.tokens), *times, ours, theirs]
