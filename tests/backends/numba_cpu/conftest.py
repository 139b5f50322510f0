"""Every way a processor can go, as a fixture: those this machine can't are skipped by name."""

from __future__ import annotations

import pytest

from lorafam.backends.numba_cpu import processor as module
from lorafam.backends.numba_cpu.processor import Processor

WAYS = ("avx512bf16", "avx512", "avx2", "portable")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Processor:
    """The processor as the kernels see it in this test; LORAFAM_CPU forces it."""
    name = request.param.removesuffix("bf16")
    monkeypatch.setenv(module.VARIABLE, name)
    try:
        cpu = module.processor()
    except RuntimeError as error:
        pytest.skip(str(error))
    if name == "avx512":
        wanted = request.param.endswith("bf16")
        if wanted and not cpu.bf16:
            pytest.skip("this processor doesn't multiply pairs of bf16")
        cpu = cpu._replace(bf16=wanted)
        monkeypatch.setattr(module, "_choose", lambda wanted: cpu)
    return cpu
