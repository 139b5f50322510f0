"""`python -m lorafam.bench.gpu.profiled OP TOKENS`: a call that ncu watches, after some that it doesn't."""

from __future__ import annotations

import sys

from lorafam.backends.processes import die_with_parent

from .parts.counters import main

if __name__ == "__main__":
    die_with_parent()
    main(sys.argv[1:])
