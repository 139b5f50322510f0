"""`python -m lorafam.bench.gpu.one_call OP [OP …]`: the ops' smallest calls, for a tool that watches a process."""

from __future__ import annotations

import sys

from lorafam.backends.processes import die_with_parent

from .device import device


def main(ops: list[str]) -> None:
    from lorafam.backends import comparison, eager, self_check_cases

    die_with_parent()
    draw, done = self_check_cases.Draw(0, eager, device().where), set()
    for case in self_check_cases.cases():
        # bf16 comes first
        kind = (case.op, case.what.split(",")[0])
        if case.op in ops and kind not in done:
            done.add(kind)
            comparison.results_of(case.op, getattr(device().ops, case.op), case.make(draw))
            device().synchronize()
            print(f"done: {case.op}, {case.what}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
