"""How much the resident memory of a process grows at most in forward + backward over one NF4 layer, a process each."""

from __future__ import annotations

import gc
import subprocess
import sys

from lorafam.finetune.memory import PeakMemory, release_freed, resident

from ..case import make_case
from ..contenders import train_of


def growth(contender: str, size: tuple[int, int], tokens: int) -> int:
    """Bytes, measured in a process of its own."""
    command = [sys.executable, "-m", "lorafam.bench.cpu.memory", contender, *map(str, (*size, tokens))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def _measure(contender: str, size: tuple[int, int], tokens: int) -> int:
    # code is loaded, threads are started and kernels compiled by another layer
    train_of(contender, make_case("qlora", 256, tokens))()
    call = train_of(contender, make_case("qlora", size, tokens))
    gc.collect()
    release_freed()
    before = resident()
    with PeakMemory() as memory:
        call()
    return memory.peak - before


if __name__ == "__main__":
    name, rows, columns, count = sys.argv[1:]
    print(_measure(name, (int(rows), int(columns)), int(count)))
