"""`python -m lorafam.bench.host`: microseconds of the host a layer, forward + backward, beside PEFT + bitsandbytes, and
kernels launched; `--page FILE` writes them as a page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from lorafam.files import write_text

from .chains import Chain, group_chains, layer_chains, least
from .counted import count
from .page import Row, page
from .stubs import Driver, install, launching

NAMES, TOKENS = ("qlora", "qdora", "lora", "adalora"), (1, 64, 2048)


def main() -> None:
    """Prints a line a layer as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m lorafam.bench.host", description=__doc__)
    parser.add_argument("--page", type=Path, help="a file to write")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    driver = install()
    rows = []
    for tokens in TOKENS:
        for name in NAMES:
            rows.append(measured(name, tokens, layer_chains(name, tokens), driver))
        rows.append(measured("qlora, q k v", tokens, group_chains(tokens), driver))
    if chosen.page is not None:
        write_text(chosen.page, page(rows))


def measured(name: str, tokens: int, chains: dict[str, Chain], driver: Driver) -> Row:
    """One row, which is printed."""
    with launching():
        found = least(chains)
        counts = {who: count(chain, driver) for who, chain in chains.items()}
    row = Row(name, tokens, found["lorafam"], found["PEFT"], counts["lorafam"], counts["PEFT"])
    print(f"{name:14}{tokens:6}  {row.ours:6.0f} µs, PEFT {row.theirs:6.0f}  {_told(row)}", flush=True)
    return row


def _told(row: Row) -> str:
    ours, theirs = (" + ".join(str(one.all) for one in each) for each in (row.our_launches, row.their_launches))
    return f"kernels {ours}, PEFT {theirs}"


if __name__ == "__main__":
    main()
