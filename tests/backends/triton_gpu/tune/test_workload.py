"""The calls of a point are ones that every op takes, and that ask the launch table about the point."""

from __future__ import annotations

import pytest
import torch
from lorafam.kernels.launch_table import observed, prefer, rows

from lorafam.backends import eager, numba_cpu, triton_gpu
from lorafam.backends.self_check import compare, expected, results_of
from lorafam.backends.triton_gpu.launch import compiled_only
from lorafam.backends.triton_gpu.tune.points import OPS, points
from lorafam.backends.triton_gpu.tune.workload import workload
from tests.conftest import INTERPRETING

CPU = torch.device("cpu")
CASES = points(OPS, [(64, 128), (24, 72)], [4], 8, "float32", ["nf4", "dense"])


@pytest.mark.parametrize("point", CASES, ids=str)
def test_another_backend_passes(point) -> None:  # type: ignore[no-untyped-def]
    work = workload(point, CPU)
    for arguments in (work.arguments, work.odd):
        wanted = expected(work.op, getattr(eager, work.op), arguments)
        compare(work.op, results_of(work.op, getattr(numba_cpu, work.op), arguments), wanted)


@pytest.mark.skipif(INTERPRETING, reason="of compiled code only")
@pytest.mark.parametrize("op", OPS)
def test_the_kernel_asks_about_the_point_and_takes_its_row(op: str) -> None:
    (point, *_) = points([op], [(64, 128)], [4], 8)
    work = workload(point, CPU)
    row = {**rows("nvidia")[op][-1], "num_warps": 2}
    row = {"N": 64, "K": 128, "rank": 8, "tokens": 4, "blocks": row["blocks"], "num_warps": 2, "num_stages": 1}
    prefer("sm_90", {op: [row]})
    with observed() as questions, compiled_only("sm_90") as launches:
        getattr(triton_gpu, work.op)(*work.arguments)
    asked = [question for question in questions if question.kernel == op]
    assert {(question.tokens, question.N, question.K) for question in asked} == {(point.tokens, point.N, point.K)}
    assert {question.rank for question in asked} <= {0, 8}
    assert {launch.kernel.metadata.num_warps for launch in launches if launch.name == f"{op}_kernel"} == {2}
