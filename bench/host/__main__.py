"""`python -m lorafam.bench.host`: microseconds of the host a layer, forward + backward, beside PEFT + bitsandbytes.

Of a chain of layers, so that what a backward costs once isn't put on one of them; medians of chains that take turns.
"""

from __future__ import annotations

import argparse

import torch

from .chains import Chain, group_chains, layer_chains, medians
from .stubs import ARCHITECTURE, Driver, install, launching

NAMES, TOKENS = ("qlora", "qdora", "lora", "adalora"), (1, 64, 2048)


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(prog="python -m lorafam.bench.host", description=__doc__).parse_args()
    torch.set_num_threads(1)
    driver = install()
    print(f"{ARCHITECTURE}, bf16: µs of the host, forward + backward, of one of a chain; what the driver does left out")
    print(f"{'':14}{'tokens':>8}{'lorafam':>10}{'PEFT':>10}{'ratio':>8}{'launches':>10}")
    for tokens in TOKENS:
        for name in NAMES:
            _print(name, tokens, layer_chains(name, tokens), driver)
        _print("qlora q, k, v", tokens, group_chains(tokens), driver)


def _print(name: str, tokens: int, chains: dict[str, Chain], driver: Driver) -> None:
    with launching():
        found = medians(chains)
        before = driver.launches
        chains["lorafam"]()
    launches = (driver.launches - before) / len(chains["lorafam"].links)
    ours, theirs = found["lorafam"], found["PEFT"]
    print(f"{name:14}{tokens:8}{ours:10.0f}{theirs:10.0f}{theirs / ours:8.2f}{launches:10.0f}")


if __name__ == "__main__":
    main()
