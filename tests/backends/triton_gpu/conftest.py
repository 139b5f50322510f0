import pytest

from tests.conftest import INTERPRETING, ON_GPU, need_ptxsim, simulated


@pytest.fixture(
    params=["interpreter"] if INTERPRETING else [simulated("sm_80"), simulated("sm_90")] + ["cuda"] * ON_GPU
)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the Triton backend runs: interpreted, as compiled code of two architectures, on the GPU there is."""
    if request.param == "cuda":
        monkeypatch.setenv("LORAFAM_BACKEND", "triton")
    elif not INTERPRETING:
        need_ptxsim()
        monkeypatch.setenv("LORAFAM_BACKEND", "simulate")
        monkeypatch.setenv("LORAFAM_SIMULATE", request.param)
    return request.param
