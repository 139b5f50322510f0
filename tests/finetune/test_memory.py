import time

import pytest
import torch

from lorafam.finetune import memory
from lorafam.finetune.memory import PeakMemory, resident

SIZE = 200_000_000


@pytest.mark.parametrize("kernel", [True, False])
def test_peak_is_seen_though_freed(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 MB that come and go between two looks; with the kernel's own count and with the sampling thread."""
    if not kernel:
        monkeypatch.setattr(memory, "_forget_peak", lambda: False)
    before = resident()
    with PeakMemory() as peak:
        block = torch.ones(SIZE, dtype=torch.uint8)
        time.sleep(0.05)
        del block
    assert peak.source == ("sampled every 10 ms" if not kernel else peak.source)
    assert 0.9 * SIZE < peak.peak - before < 1.5 * SIZE


def test_earlier_peak_does_not_count() -> None:
    block = torch.ones(SIZE, dtype=torch.uint8)
    del block
    before = resident()
    with PeakMemory() as peak:
        time.sleep(0.01)
    assert peak.peak - before < 0.5 * SIZE
