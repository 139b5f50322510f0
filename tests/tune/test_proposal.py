"""Rows for the shipped tables, from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafam.tune.proposal import proposal, tables
from tests.tune.test_table import BLOCKS, measured


def write(path: Path, points: list[dict[str, Any]], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"architecture": "sm_90", "points": points, **more}))
    return path


def test_rows_are_whole_and_of_their_architecture(tmp_path: Path) -> None:
    route = {**measured(64, 128, 4), "table": "paths", "kernel": "lora_linear", "conditions": {"tokens": 64, "K": 128}}
    route |= {
        "shipped": {"path": "fused", "seconds": 2.0},
        "best": {"path": "staged", "product": "cublas", "seconds": 1.0},
    }
    path = write(tmp_path / "user-tuned" / "tuned-x.json", [measured(64, 512, 8), measured(4, 512, 4), route])
    assert tables(tmp_path) == tables(path) == [path]
    common = {
        "K": 512,
        "rank": 16,
        "dtypes": ["bfloat16"],
        "blocks": BLOCKS,
        "num_stages": 1,
        "architectures": ["sm_90"],
    }
    assert proposal(path) == {
        "rows": {
            # the smaller point would else have the larger one's
            "lora_project": [{"tokens": 4, **common, "num_warps": 4}, {"tokens": 64, **common, "num_warps": 8}]
        },
        "paths": {
            "lora_linear": [{"tokens": 64, "K": 128, "path": "staged", "product": "cublas", "architectures": ["sm_90"]}]
        },
    }


def test_nothing_right_is_no_row(tmp_path: Path) -> None:
    wrong = {**measured(4, 512, 4), "shipped": None, "best": None}
    path = write(tmp_path / "tuned-x.json", [measured(64, 512, 8), wrong])
    assert [row["tokens"] for row in proposal(path)["rows"]["lora_project"]] == [64]


@pytest.mark.parametrize("text", ["{", "[]", '{"architecture": "sm_90"}'])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned-x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected a table of lorafam tune"):
        proposal(path)
