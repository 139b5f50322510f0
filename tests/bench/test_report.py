"""Ratios, rows and the table, from figures made up here."""

import json
from pathlib import Path

import pytest
from lorafam.bench.report import medians, ratios, rows, table

from lorafam.files import write_json


def entry(direction: str, contender: str, seconds: float) -> dict:
    info = {"name": "qlora", "size": 2048, "tokens": 16, "dtype": "x", "rank": 8}
    return {"extra_info": {**info, "direction": direction, "contender": contender}, "stats": {"median": seconds}}


RESULTS = {
    "benchmarks": [
        entry("forward", "lorafam", 0.002),
        entry("forward", "eager", 0.010),
        entry("forward", "peft", 0.030),
        entry("train", "lorafam", 0.004),
        entry("train", "eager", 0.006),
    ]
}


def test_ratios() -> None:
    times = medians(RESULTS)["qlora", 2048, 16]
    assert ratios(times, "forward") == {"eager": 5.0, "peft": 15.0}
    assert ratios(times, "train") == {"eager": 1.5}


def test_table_has_a_line_a_case_and_no_figure_that_was_not_measured() -> None:
    line = table(RESULTS).splitlines()[-1].split()
    assert line == ["qlora", "2048", "16", "2.00", "5.00x", "15.00x", "4.00", "1.50x", "-"]
    assert table(RESULTS, digits=3).splitlines()[-1].split()[3] == "2.000"


def test_a_column_for_each_who_was_timed() -> None:
    """In one order, whoever was timed first; their figures where lorafam has one."""
    beside = [entry("forward", "unsloth", 0.004), entry("forward", "dense", 0.001), entry("train", "dense", 0.002)]
    head, line = table({"benchmarks": [*beside, entry("forward", "lorafam", 0.002)]}).splitlines()[1:]
    assert head.split() == ["method", "size", "tokens", *2 * ["ms", "dense", "Unsloth"]]
    assert line.split() == ["qlora", "2048", "16", "2.00", "0.50x", "2.00x", "-", "-", "-"]


def test_rows() -> None:
    found = rows(RESULTS)
    assert [row["ratio"] for row in found] == [1.0, 5.0, 15.0, 1.0, 1.5]
    assert found[2] == {
        "method": "qlora",
        "size": 2048,
        "tokens": 16,
        "direction": "forward",
        "dtype": "x",
        "rank": 8,
        "contender": "peft",
        "median_seconds": 0.030,
        "ratio": 15.0,
    }
    assert [row["ratio"] for row in rows({"benchmarks": RESULTS["benchmarks"][1:2]})] == [None]


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
