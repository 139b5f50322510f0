import io

import pytest
from rich.console import Console

from lorafam.finetune.progress import ConsoleReporter, human_bytes

FIGURES = {"loss": 2.3456, "tokens_per_second": 112.4, "resident_memory": 1_930_000_000}


def run(console: Console, total: int, done: int = 0) -> None:
    reporter = ConsoleReporter(console)
    reporter.note("loading tiny")
    reporter.begin(done, total)
    for step in range(done + 1, total + 1):
        held_out = {"held_out_loss": 2.5, "held_out_standard_error": 0.05} if step == total else {}
        reporter.step({"step": step, **FIGURES, **held_out})
    reporter.end()
    reporter.end()


@pytest.mark.parametrize(("total", "lines"), [(7, 8), (30, 16), (100, 21), (101, 18)])
def test_plain_lines_where_there_is_no_terminal(total: int, lines: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=80)
    run(console, total)
    text = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(text) == lines
    assert text[0] == "loading tiny"
    assert text[-1] == (
        f"step {total}/{total}  loss 2.346  112 tok/s  1.93 GB  held-out loss 2.5000 ± 0.0500  0:00 left"
    )


def test_bar_fits_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None, legacy_windows=False)
    run(console, 40, done=20)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "40/40 loss 2.346  112 tok/s  1.93 GB" in text
    assert "step 40  held-out loss 2.5000 ± 0.0500" in text
    assert all(len(line) <= 80 for line in text.replace("\r", "\n").split("\n") if "\x1b" not in line)


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (4_100, "4 kB"), (485_600_000, "486 MB"), (1.93e9, "1.93 GB"), (-2e7, "-20 MB")]
)
def test_human_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text
