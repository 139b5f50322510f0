"""What libraries say on import about parts that aren't used here."""

from __future__ import annotations

import logging


def silence() -> None:
    """bitsandbytes looks for a kernel library and finds our folder of that name; torchao looks for its GPU code."""
    for name in ("bitsandbytes.backends.cpu.ops", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
