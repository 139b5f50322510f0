from __future__ import annotations

import json
from pathlib import Path

from lorafam.bench.kernel_table.measured import table


def test_what_a_gpu_measured(tmp_path: Path) -> None:
    assert table(tmp_path) == ["Nothing has been measured on a GPU yet (`make gpu`)."]
    case = {
        "method": "qlora",
        "shape": [4096, 1024],
        "tokens": 16,
        "table": "tuned",
        "outcome": "passed",
        "gpu": 2.5e-5,
    }
    cases = {
        "a": {**case, "direction": "forward", "contender": "lorafam"},
        "b": {**case, "direction": "forward", "contender": "peft"},
        "c": {**case, "direction": "train", "contender": "lorafam"},
        "d": {"outcome": "failed"},
    }
    results = {"gpu": {"name": "a card"}, "items": {"bench/x": {"finished": True, "cases": cases}}}
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "summary.json").write_text(json.dumps(results))
    assert table(tmp_path)[2:] == ["| a card | tuned | qlora | 4096 x 1024 | 16 | 25.0 |"]
