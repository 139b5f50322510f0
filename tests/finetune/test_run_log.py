import json
from datetime import datetime
from pathlib import Path

import pytest

from lorafam.finetune.run_log import RunLog, read_log


def test_lines_are_whole_records(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    written = [log.write({"step": step, "loss": step / 3}) for step in range(3)]
    lines = log.path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == written == log.records == read_log(log.path)
    assert written[1]["loss"] == 1 / 3
    assert written[0]["resident_memory"] > 1e7
    assert datetime.fromisoformat(written[0]["time"]).utcoffset() is not None


def test_starting_anew_empties(tmp_path: Path) -> None:
    RunLog(tmp_path / "log.jsonl").write({"step": 1})
    assert read_log(RunLog(tmp_path / "log.jsonl").path) == []


@pytest.mark.parametrize("end", ["", '{"step": 5, "lo', '{"step": 5, "lo\n', "[1, 2]\n", "\x00\x00"])
def test_resuming_drops_what_came_after_and_what_is_cut(end: str, tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    for step in range(5):
        log.write({"step": step})
    with log.path.open("a") as file:
        file.write(end)
    resumed = RunLog(log.path, resume_at=3)
    resumed.write({"step": 4, "again": True})
    assert [record["step"] for record in read_log(log.path)] == [0, 1, 2, 3, 4]
    assert read_log(log.path) == resumed.records
    assert list(tmp_path.iterdir()) == [log.path]


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunLog(tmp_path / "log.jsonl").write({"step": 1, "loss": float("nan")})
