"""The host's time of a layer on a GPU that isn't there: what is prepared once is a fraction of what isn't."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="of compiled code only")

# the stubs stay for the process that they are put in
MEASURE = """
import json, time, torch
from lorafam.backends import triton_gpu
from lorafam.bench.host.chains import layer_chains
from lorafam.bench.host.stubs import install, launching

torch.set_num_threads(1)
driver = install()
found = {}
for name in ("qlora", "qdora"):
    chain = layer_chains(name, 64)["lorafam"]
    with launching():
        chain()
        before = driver.launches
        chain()
        launches = driver.launches - before
        prepared, anew = [], []
        for _ in range(25):
            start = time.perf_counter()
            chain()
            prepared.append(time.perf_counter() - start)
            triton_gpu.selection.prepare_by(lambda name, function, *args: function(*args))
            start = time.perf_counter()
            chain()
            anew.append(time.perf_counter() - start)
            triton_gpu.selection.prepare_by(triton_gpu.prepared)
        found[name] = {"launches": launches / len(chain.links), "ratio": min(anew) / min(prepared)}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    environment = {name: value for name, value in os.environ.items() if name != "LORAFAM_BACKEND"}
    command = [sys.executable, "-W", "ignore", "-c", MEASURE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["qlora", "qdora"])
def test_a_prepared_step_takes_less_than_half(name: str, measured: dict[str, dict[str, float]]) -> None:
    assert measured[name]["ratio"] >= 2


def test_launches(measured: dict[str, dict[str, float]]) -> None:
    assert {name: one["launches"] for name, one in measured.items()} == {"qlora": 5, "qdora": 7}
