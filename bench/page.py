"""The page of a GPU: what `make gpu` measured there, in Markdown, from its summary and nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .gpu.cases import BAD, LEFT_OUT, PASSED

Results = Mapping[str, Any]
HEADINGS = {"lora": "LoRA (dense base)", "qlora": "QLoRA", "qdora": "QDoRA", "adalora": "AdaLoRA (NF4 base)"}
TITLES = {
    "eager": "eager",
    "peft": "PEFT",
    "compiled": "PEFT compiled",
    "dense": "dense",
    "unsloth": "Unsloth",
    "axolotl": "axolotl",
    "lorafusion": "LoRAFusion",
}
DIRECTIONS = {"forward": "forward", "train": "forward + backward"}
OUTCOMES = (PASSED, *BAD, LEFT_OUT)
HOW = (
    "One layer, adapters of rank {rank}, fp32; x and a dense W in {dtype}. µs are the GPU's, of one call in a replayed "
    "graph, over copies of the layer that together are more than twice the L2; warm: over one layer alone. Host: what "
    "launching takes the caller's thread. Of peak: bytes or operations a second over those of a large copy or product "
    "in this run, whichever is more. Each other column says how many times as long that one takes on the GPU: above 1x "
    'lorafam is faster. "dense" is the plain product without an adapter, W decoded beforehand: the floor.'
)


def page(results: Results) -> str:
    """The whole page; what hasn't run yet isn't in it, and the heading says so."""
    items = results["items"]
    parts = [heading(results), checks(items), bad(items), benchmark(items), tuned(items), counters(items), steps(items)]
    return "\n\n".join([*filter(None, [*parts, left_out(items)])]) + "\n"


def heading(results: Results) -> str:
    gpu, left = results["gpu"], results["left"]
    state = f" **Not at its end: {len(left)} items are left, the next is {left[0]}.**" if left else ""
    versions = [f"{name} {version}" for name, version in results["versions"].items() if version]
    lines = [
        ("compute capability", gpu["compute_capability"]),
        ("memory", f"{gpu['memory_bytes'] / 1e9:.0f} GB"),
        ("driver", gpu["driver"] or "unknown"),
        ("versions", ", ".join(versions)),
        ("code", " ".join(filter(None, (results["code"], results["commit"])))),
    ]
    return f"# {gpu['name']}\n\nMeasured by `make gpu`, begun {results['date']}.{state}\n\n{grid(('', ''), lines)}"


def checks(items: Results) -> str:
    """How many cases of each item went how."""
    lines = []
    for name, item in items.items():
        if name.startswith(("check/", "tests/")):
            counts = Counter(case["outcome"] for case in item["cases"].values())
            state = "" if item["finished"] else " (not finished)"
            lines.append((f"`{name}`{state}", *(counts[outcome] or "" for outcome in OUTCOMES)))
    return f"## Checks\n\n{grid(('', *OUTCOMES), lines) if lines else 'Not run.'}"


def bad(items: Results) -> str:
    """Every case that isn't right, with the reason."""
    lines = [
        f"- `{name}`, {escaped(case)}: {result['outcome']}: {escaped(result.get('why', ''))}"
        for name, item in items.items()
        for case, result in item["cases"].items()
        if result["outcome"] in BAD
    ]
    return "\n".join(["## Failed", "", *lines]) if lines else ""


def left_out(items: Results) -> str:
    """Reasons, with what each cost."""
    cases: dict[str, list[str]] = defaultdict(list)
    for name, item in items.items():
        for case, result in item["cases"].items():
            if result["outcome"] == LEFT_OUT:
                cases[result["why"]].append(name if case == name else f"{name} {case}")
    lines = [f"- {escaped(why)}: {escaped('; '.join(names))}" for why, names in cases.items()]
    return "\n".join(["## Left out", "", *lines]) if lines else ""


def benchmark(items: Results) -> str:
    """A table a method and direction, with the shipped launch table and with the tuned one."""
    rows = list(measured(items, "bench/", "contender"))
    peaks = items.get("bench/peaks", {"cases": {}})["cases"]
    lines = ["## Benchmark", "", HOW.format(**rows[0])] if rows else []
    if rows and peaks:
        reached = []
        if "bytes_a_second" in peaks.get("copy", {}):
            reached.append(f"a large copy {peaks['copy']['bytes_a_second'] / 1e12:.2f} TB/s")
        if "flops" in peaks.get("product bfloat16", {}):
            reached.append(f"a large product {peaks['product bfloat16']['flops'] / 1e12:.0f} TFLOP/s")
        lines += ["", f"Reached in this run: {', '.join(reached)}."]
    for table in ("untuned", "tuned"):
        for method, title in HEADINGS.items():
            for direction, way in DIRECTIONS.items():
                part = [
                    row for row in rows if (row["table"], row["method"], row["direction"]) == (table, method, direction)
                ]
                if part:
                    lines += ["", f"### {title}, {way}, {table}", "", times(part, peaks)]
    return "\n".join(lines)


def measured(items: Results, part: str, key: str) -> Iterator[Results]:
    """The results of a part that hold a figure."""
    for name, item in items.items():
        if name.startswith(part):
            yield from (case for case in item["cases"].values() if case["outcome"] == PASSED and key in case)


def times(rows: Sequence[Results], peaks: Results) -> str:
    """One method and direction: a line a shape and number of tokens."""
    columns = [name for name in TITLES if any(row["contender"] == name for row in rows)]
    cases: dict[tuple[Any, ...], dict[str, Results]] = defaultdict(dict)
    for row in rows:
        cases[tuple(row["shape"]), row["tokens"]][row["contender"]] = row
    lines = []
    for (shape, tokens), of in sorted(cases.items()):
        ours = of.get("lorafam")
        figures = [micro(ours.get(name)) for name in ("gpu", "gpu_warm", "host")] if ours else ["-"] * 3
        part = of_peak(ours, peaks) if ours else "-"
        others = [f"{of[name]['gpu'] / ours['gpu']:.2f}x" if ours and name in of else "-" for name in columns]
        lines.append((" x ".join(map(str, shape)), tokens, *figures, part, *others))
    return grid(("N x K", "tokens", "µs", "warm", "host", "of peak", *(TITLES[name] for name in columns)), lines)


def of_peak(row: Results, peaks: Results) -> str:
    """The larger part of what a copy or a product reaches."""
    copied = peaks.get("copy", {}).get("bytes_a_second")
    multiplied = peaks.get(f"product {row['dtype']}", {}).get("flops")
    parts = [row["bytes"] / row["gpu"] / copied] if copied else []
    parts += [row["flops"] / row["gpu"] / multiplied] if multiplied else []
    return f"{100 * max(parts):.0f} %" if parts else "-"


def tuned(items: Results) -> str:
    """What `lorafam tune` found beside the shipped choices."""
    lines = []
    for row in measured(items, "tune/", "point"):
        best, shipped = row.get("best"), row.get("shipped")
        choice = {name: value for name, value in (best or {}).items() if name != "seconds"}
        choice = {**choice.pop("blocks", {}), **choice}
        lines.append(
            (
                row["point"],
                micro(shipped and shipped["seconds"]),
                micro(best and best["seconds"]),
                text(choice) if row["won"] else "as shipped",
            )
        )
    return f"## Launch table\n\n{grid(('', 'shipped µs', 'best µs', 'choice'), lines)}" if lines else ""


def counters(items: Results) -> str:
    """The hardware's counters by kernel, or times alone where those aren't permitted."""
    rows = list(measured(items, "profile/", "kernels"))
    names = list(dict.fromkeys(name for row in rows for one in row["kernels"] for name in one["metrics"]))
    lines = [
        (row["call"], one["kernel"], *(shown(one["metrics"].get(name)) for name in names))
        for row in rows
        for one in row["kernels"]
    ]
    return f"## Kernels\n\n{grid(('call', 'kernel', *names), lines)}" if lines else ""


def steps(items: Results) -> str:
    """Whole training steps."""
    lines = [
        (
            row["title"],
            f"{row['tokens_a_second']:.0f}",
            f"{1e3 * row['step_seconds']:.1f}",
            f"{row['peak_bytes'] / 1e9:.2f}",
        )
        for row in measured(items, "step/", "tokens_a_second")
    ]
    return f"## A training step\n\n{grid(('', 'tokens/s', 'ms', 'peak GB'), lines)}" if lines else ""


def micro(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:.1f}"


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def text(values: Mapping[str, Any]) -> str:
    """{"tokens": 16, "dtypes": ["bfloat16"]} → tokens 16, dtypes bfloat16."""
    said = {name: " or ".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in said.items())


def grid(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(escaped(str(cell)) for cell in line) + " |" for line in lines)


def escaped(cell: str) -> str:
    """As one cell or list entry of Markdown."""
    return " ".join(cell.split()).replace("|", "\\|").replace("<", "\\<")
