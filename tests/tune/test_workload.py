"""The calls of a point are ones that every op takes, and that ask the launch table about the point."""

from __future__ import annotations

import pytest
import torch
from lorafam.kernels.launch_table import observed, prefer, rows
from lorafam.kernels.paths import prefer_paths

from lorafam.backends import eager, numba_cpu, triton_gpu
from lorafam.backends.comparison import compare, expected, results_of
from lorafam.backends.triton_gpu.launch import compiled_only
from lorafam.tune.points import OPS, PATHS, points
from lorafam.tune.workload import workload
from tests.conftest import INTERPRETING

CPU = torch.device("cpu")
CASES = points(OPS, [(64, 128), (24, 72)], [4], 8, "float32", ["nf4", "dense"])
CASES += points(["dense_linear", *PATHS], [(64, 128)], [64], 8, "float16")
KERNELS = [op for op in OPS if op not in PATHS]


@pytest.mark.parametrize("point", CASES, ids=str)
def test_another_backend_passes(point) -> None:  # type: ignore[no-untyped-def]
    work = workload(point, CPU)
    for arguments in (work.arguments, work.odd):
        wanted = expected(work.op, getattr(eager, work.op), arguments)
        compare(work.op, results_of(work.op, getattr(numba_cpu, work.op), arguments), wanted)


@pytest.mark.skipif(INTERPRETING, reason="of compiled code only")
@pytest.mark.parametrize("op", KERNELS)
def test_the_kernel_asks_about_the_point_and_takes_its_row(op: str) -> None:
    tokens = 64 if op == "dense_linear" else 4
    (point, *_) = points([op], [(64, 128)], [tokens], 8)
    work = workload(point, CPU)
    shipped = rows("nvidia")[op][-1]
    warps = shipped["num_warps"] // 2
    row = {"N": 64, "K": 128, "rank": 8, "tokens": tokens, "blocks": shipped["blocks"], "num_warps": warps}
    prefer("sm_90", {op: [row]})
    prefer_paths("sm_90", work.paths)
    with observed() as questions, compiled_only("sm_90") as launches:
        getattr(triton_gpu, work.op)(*work.arguments)
    asked = [question for question in questions if question.kernel == op]
    assert {(question.tokens, question.N, question.K) for question in asked} == {(point.tokens, point.N, point.K)}
    assert {question.rank for question in asked} <= {0, 8}
    assert {launch.kernel.metadata.num_warps for launch in launches if launch.name == f"{op}_kernel"} == {warps}
