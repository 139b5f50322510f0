"""The counts of a kernel of which all is known."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from tests.conftest import INTERPRETING, need_ptxsim

pytestmark = pytest.mark.skipif(INTERPRETING, reason="of compiled code only")


@triton.jit
def _twice_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    # the second time the first of every sector's eight, by all lanes
    total = tl.load(x_ptr + offs) + tl.load(x_ptr + offs // 8 * 8)
    tl.store(y_ptr + tl.program_id(0) * BLOCK + offs, total)


def test_a_sector_is_counted_at_three_places() -> None:
    need_ptxsim()
    from lorafam.kernels.kernel_call import KernelCall

    from lorafam.backends.triton_gpu.launch import launch
    from lorafam.inspect.traffic import Moved, count

    x, y = torch.arange(128.0), torch.empty(256)

    def run() -> None:
        call = KernelCall(_twice_kernel, (2,), {"x_ptr": x, "y_ptr": y, "BLOCK": 128, "num_warps": 4})
        launch(x.device, ("y_ptr",), lambda: call)

    ((made, traffic),) = count("sm_80", run)
    assert made.name == "_twice_kernel"
    assert torch.equal(y, (x + x // 8 * 8).repeat(2))
    # 512 bytes: 16 sectors, in two loads, in two programs
    assert traffic.read == {"x_ptr": Moved(requested=64, fetched=32, distinct=16)}
    assert traffic.written == {"y_ptr": Moved(requested=32, fetched=32, distinct=32)}
    assert sum(n for opcode, n in traffic.executed.items() if opcode.startswith("st.global")) == 8
    assert (traffic.wavefronts, traffic.conflicts) == (0, 0)


def test_the_architecture_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    need_ptxsim()
    import os

    from lorafam.inspect.traffic import count

    monkeypatch.delenv("LORAFAM_SIMULATE", raising=False)
    seen: list[str | None] = []
    assert count("sm_90", lambda: seen.append(os.environ.get("LORAFAM_SIMULATE"))) == []
    assert seen == ["sm_90"]
    assert "LORAFAM_SIMULATE" not in os.environ
