"""Ratios and the table, from figures made up here."""

from lorafam.bench.report import medians, ratios, table


def entry(direction: str, contender: str, seconds: float) -> dict:
    info = {"name": "qlora", "size": 2048, "tokens": 16, "direction": direction, "contender": contender}
    return {"extra_info": info, "stats": {"median": seconds}}


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
