"""docs/cpu.md: what a CPU's user waits for, by processor, beside what the processor can do at most.

`python -m lorafam.bench.cpu.model_page [--demo FOLDER] [--name NAME]` measures this processor and writes the page anew
from what is kept in bench/results/cpu. A whole step and a token are taken from what `make demo` left in FOLDER.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lorafam.backends.numba_cpu.processor import model_name, processor
from lorafam.files import write_json, write_text

from ..demo.pace import Pace, Paces
from ..demo.plan import BY_KEY, GENERATED, PAIRS, SEQUENCE_LENGTH
from ..page import grid
from .model_sizes import RANK, TOKENS, VOCABULARY, Timed, head, layers
from .peaks import Peaks, peaks

ROOT = Path(__file__).parents[2]
TITLES = {"qlora": "NF4 with double quantisation", "lora": "dense"}
HEAD = """\
# On a CPU

Written by `python -m lorafam.bench.cpu.model_page` from what it and `make demo` measured. fp32 throughout; times are
medians, taken in turn with the other's in the same run. A ratio says how many times as long the other takes: above 1x
lorafam is faster. Peaks are this machine's own: multiply-adds in registers, and a copy. "Of peak" is the product's
2 M N K operations in the whole forward's time; "of copy" the weight's bytes at one token: small weights stay in the
caches, which are faster than memory.
"""
MILLI = 1e3
# what is timed of a layer
LAYERS = (" forward", " + backward")
# and of an output head; "vocabulary" was measured before its loss had a kernel
HEADS = {
    "vocabulary": ("A frozen output head's products", LAYERS),
    "head": ("A frozen output head", (" logits", " loss and dx")),
}


def page(kept: Sequence[dict[str, Any]]) -> str:
    """The page of what was measured on each processor."""
    return "\n".join([HEAD, *("\n".join(section(results)) for results in kept)])


def section(results: dict[str, Any]) -> Iterator[str]:
    top = Peaks(**results["peaks"])
    yield f"## {results['name']}, {results['way']}, {results['threads']} threads\n"
    reached = f"{top.flops / 1e9:.0f} GFLOP/s, {top.bytes / 1e9:.1f} GB/s"
    yield f"{results['date']}, torch {results['torch']}. Peaks: {reached}.\n"
    if results["demo"]:
        yield f"### A step of {SEQUENCE_LENGTH} tokens, and a token (gemma-3-270m, `make demo`)\n"
        yield from _steps(results["demo"])
    timed = [Timed(row[0], tuple(row[1]), *row[2:]) for row in results["rows"]]
    for name, title in TITLES.items():
        yield f"### One adapted layer, {title}, rank {RANK}: ms, and times as long with PEFT\n"
        yield _layers([row for row in timed if row.what == name], top, 0.516 if name == "qlora" else 4.0)
    size = " x ".join(map(str, VOCABULARY))
    for name, (title, said) in HEADS.items():
        rows = [row for row in timed if row.what == name]
        if rows:
            yield f"### {title}, {size}: ms, and times as long with torch\n"
            yield _layers(rows, top, 4.0, said)


def _steps(demo: dict[str, Any]) -> Iterator[str]:
    lines = []
    for ours, _ in PAIRS:
        if ours in demo:
            pace = Paces(*(Pace(*part) for part in demo[ours]))
            token = pace.generation._replace(
                ours=pace.generation.ours / GENERATED, theirs=pace.generation.theirs / GENERATED
            )
            lines.append((BY_KEY[ours].title, *map(_paced, (pace.step, pace.layers, token, pace.accelerated))))
    head = ("", "a step, s", "of it in adapted layers, s", "a token, s", "PEFT's step accelerated in place, s")
    yield grid(head, lines) + "\n"
    yield "lorafam / PEFT (+ bitsandbytes where NF4): how many times as long, and the 90 % bounds of that median.\n"


def _paced(pace: Pace) -> str:
    return f"{pace.ours:.3f} / {pace.theirs:.3f}: {pace.ratio:.2f}x ({pace.least:.2f} to {pace.most:.2f})"


def _layers(rows: Sequence[Timed], top: Peaks, bytes_a_weight: float, said: Sequence[str] = LAYERS) -> str:
    by_case = {(row.size, row.tokens, row.direction): row for row in rows}
    lines = []
    for size in dict.fromkeys(row.size for row in rows):
        cells = [" x ".join(map(str, size))]
        for tokens in TOKENS:
            for direction in ("forward", "train"):
                row = by_case[size, tokens, direction]
                cells.append(f"{_milliseconds(row.ours)} ({row.theirs / row.ours:.1f}x)")
        reached = by_case[size, 128, "forward"]
        weights = size[0] * size[1]
        cells.append(f"{2 * 128 * weights / reached.ours / top.flops:.0%}")
        cells.append(f"{weights * bytes_a_weight / by_case[size, 1, 'forward'].ours / top.bytes:.0%}")
        lines.append(cells)
    ways = [f"{tokens}{way}" for tokens in TOKENS for way in said]
    return grid(("N x K \\ tokens", *ways, "of peak, 128", "of copy, 1"), lines) + "\n"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * MILLI:.{2 if seconds < 0.01 else 1 if seconds < 0.1 else 0}f}"


def measured(name: str, demo: Path | None, seconds: float) -> dict[str, Any]:
    """Everything of this processor, as kept."""
    timings: list[Timed] = []
    for produce in (layers("qlora", seconds), layers("lora", seconds), head(seconds)):
        for row in produce:
            print(f"{row.what:11}{'x'.join(map(str, row.size)):>12}{row.tokens:>5} {row.direction:8}", end="")
            print(f"{row.ours * MILLI:>9.2f}{row.theirs * MILLI:>9.2f}{row.theirs / row.ours:>7.2f}x", flush=True)
            timings.append(row)
    paces = json.loads((demo / "measured.json").read_text("utf-8"))["pace"] if demo else {}
    return {
        "name": name,
        "way": processor().name,
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "peaks": peaks()._asdict(),
        "demo": paces,
        "rows": [tuple(row) for row in timings],
    }


def main(given: list[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(prog="python -m lorafam.bench.cpu.model_page", description=__doc__.split("\n")[0])
    parser.add_argument("--demo", type=Path, help="where `make demo` left measured.json")
    parser.add_argument("--name", default=model_name(), help="the processor, where the system's name says too little")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each comparison")
    options = parser.parse_args(given)
    if options.demo and not (options.demo / "measured.json").is_file():
        parser.error(f"--demo: expected a folder with measured.json, got {str(options.demo)!r}")
    kept = root / "bench" / "results" / "cpu"
    kept.mkdir(parents=True, exist_ok=True)
    results = measured(options.name, options.demo, options.seconds)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{options.name} {results['way']}".lower()).strip("-")
    write_json(kept / f"{slug}.json", results)
    write_text(root / "docs" / "cpu.md", page([json.loads(f.read_text("utf-8")) for f in sorted(kept.glob("*.json"))]))


if __name__ == "__main__":
    main()
