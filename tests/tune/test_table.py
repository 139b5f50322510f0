"""Rows from what was measured: each point keeps its own result."""

from __future__ import annotations

from typing import Any

from lorafam.kernels.launch_rows import check_rows
from lorafam.kernels.launch_table import launch_config, prefer, rows

from lorafam.tune.points import Point
from lorafam.tune.table import rows_of

from .fake_gpu import ARCHITECTURE

BLOCKS = {"BLOCK_M": 32, "BLOCK_K": 64, "BLOCK_R": 16}


def measured(tokens: int, K: int, warps: int, dtype: str = "bfloat16") -> dict[str, Any]:
    """A point whose best has so many warps; 4 are the shipped ones."""
    return {
        "point": Point("lora_project", 0, K, tokens, 16, dtype, "none")._asdict(),
        "table": "rows",
        "finished": True,
        "kernel": "lora_project",
        "conditions": {"tokens": tokens, "K": K, "rank": 16, "dtypes": [dtype]},
        "shipped": {"blocks": BLOCKS, "num_warps": 4, "num_stages": 1, "seconds": 2.0},
        "best": {"blocks": BLOCKS, "num_warps": warps, "num_stages": 1, "seconds": 1.0},
    }


def warps(tokens: int, K: int, dtype: str = "bfloat16", rank: int = 16) -> int:
    return launch_config("lora_project", ARCHITECTURE, dtype, tokens, K=K, rank=rank).num_warps


def test_every_point_gets_its_own_whatever_the_order() -> None:
    found = rows_of([measured(64, 512, 16), measured(4, 512, 1), measured(64, 128, 2), measured(4, 128, 4)])
    check_rows(found, rows("nvidia"))
    (shipped,) = {launch_config("lora_project", ARCHITECTURE, "bfloat16", 4, K=128, rank=16).num_warps}
    prefer(ARCHITECTURE, found)
    assert [warps(64, 512), warps(4, 512), warps(64, 128), warps(4, 128)] == [16, 1, 2, shipped]
    assert warps(3, 128) == shipped
    assert warps(5, 128) == 2
    assert warps(64, 129) == 16
    # beyond what was measured the shipped rows decide
    assert {warps(65, 128), warps(4, 513), warps(4, 512, rank=17), warps(4, 512, "float16")} == {shipped}


def test_nothing_won_no_rows() -> None:
    assert rows_of([measured(4, 128, 4), measured(64, 128, 4)]) == {}
    # a larger point of another dtype would take nothing
    (only,) = rows_of([measured(4, 128, 4), measured(64, 128, 2, "float16")])["lora_project"]
    assert only["num_warps"] == 2


def test_a_point_that_took_the_gpu_down_has_no_row() -> None:
    lost = {"point": Point("lora_project", 0, 128, 4, 16, "bfloat16", "none")._asdict(), "finished": False, "avoid": []}
    assert rows_of([lost]) == {}
