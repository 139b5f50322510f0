"""`python -m lorafam.bench.gpu.one_call OP [OP …]`: the ops' smallest calls, for a tool that watches a process."""

from __future__ import annotations

import sys

from .device import device
from .worker import die_with_parent


def main(ops: list[str]) -> None:
    from lorafam.backends import eager, self_check

    die_with_parent()
    done = set()
    for op, what, arguments in self_check._cases(eager, device().where):
        # bf16 comes first
        kind = (op, what.split(",")[0])
        if op in ops and kind not in done:
            done.add(kind)
            self_check.results_of(op, getattr(device().ops, op), arguments)
            device().synchronize()
            print(f"done: {op}, {what}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
