from __future__ import annotations

import json
from pathlib import Path

from lorafam.bench.kernel_table.measured import table


def test_what_a_gpu_measured(tmp_path: Path) -> None:
    assert table(tmp_path) == ["Nothing has been measured on a GPU yet (`make gpu`)."]
    case = {"method": "qlora", "size": 4096, "tokens": 16, "direction": "forward", "median_seconds": 2.5e-5}
    rows = [
        {**case, "contender": "lorafam"},
        {**case, "contender": "peft"},
        {**case, "contender": "lorafam", "direction": "train"},
    ]
    (tmp_path / "card.json").write_text(json.dumps({"gpu": {"name": "a card"}, "benchmark": {"rows": rows}}))
    assert table(tmp_path)[2:] == ["| a card | qlora | 4096 | 16 | 25.0 |"]
