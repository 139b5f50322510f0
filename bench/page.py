"""The page of a GPU: what `make gpu` measured there, in Markdown, from its JSON and nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .contenders import PEERS, TITLES
from .gpu_clock import NOTE

Results = Mapping[str, Any]
HEADINGS = {
    "lora": "LoRA (dense base)",
    "qlora": "QLoRA",
    "qdora": "QDoRA",
    "adalora": "AdaLoRA (NF4 base)",
}
DIRECTIONS = {"forward": "forward", "train": "forward + backward"}
CHOICES = ("blocks", "num_warps", "num_stages", "path", "product", "shipped")
AGREES = "Self-check: every op agrees with eager PyTorch."
HOW = (
    "Square layers of rank {rank}. Milliseconds are lorafam's median; each other column says how many times as long "
    "that one takes: above 1x lorafam is faster. lorafam and the other projects are timed on a case once their result "
    'there has passed the correctness rule of the tests, whose measure eager PyTorch is. "dense" is the plain product '
    "without an adapter, W dense and decoded beforehand: the floor. "
)
DTYPES = (
    "The adapter is fp32, and in x's dtype for {peers}, whose kernels multiply in one dtype; each is held to the "
    "rule in the dtypes it has. {coverage}."
)


def page(results: Results) -> str:
    """The whole page; a part that hasn't run yet says so."""
    parts = [heading(results), checks(results), tuned(results["tuned"]), benchmark(results["benchmark"])]
    return "\n\n".join(parts) + "\n"


def heading(results: Results) -> str:
    gpu = results["gpu"]
    state = "" if results["complete"] else " **It didn't come to its end: what is missing here wasn't measured.**"
    versions = [f"{name} {version}" for name, version in results["versions"].items() if version]
    lines = [
        ("compute capability", gpu["compute_capability"]),
        ("memory", f"{gpu['memory_bytes'] / 1e9:.0f} GB"),
        ("driver", gpu["driver"] or "unknown"),
        ("versions", ", ".join(versions)),
    ]
    return f"# {gpu['name']}\n\nMeasured by `make gpu`, {results['date']}.{state}\n\n{grid(('', ''), lines)}"


def checks(results: Results) -> str:
    """Self-check and tests."""
    wrong, tests = results["self_check"], results["tests"]
    if wrong is None:
        found = ["Self-check: not run."]
    else:
        found = ["Self-check: switched off here:", *listed(wrong)] if wrong else [AGREES]
    if tests is None:
        found += ["", "Tests: not run."]
    else:
        ended = f"; {tests['error']}" if "error" in tests else ""
        counts = ", ".join(f"{tests[name]} {name}" for name in ("passed", "failed", "skipped"))
        found += ["", f"Tests: {counts}{ended}.", *listed(tests["failures"])]
    return "\n".join(["## Checks", "", *found])


def tuned(found: Results | None) -> str:
    """The rows of the launch table that were measured on this GPU."""
    if found is None:
        return "## Launch table\n\nTuning: not run."
    lines = [f"{found['count']} rows of its own, measured by `lorafam tune`."]
    if "error" in found:
        lines.append(f"It {found['error']}.")
    rows = [
        (f"`{kernel}`", *split(entry))
        for part in ("rows", "paths")
        for kernel, entries in found.get(part, {}).items()
        for entry in entries
    ]
    if rows:
        lines += ["", grid(("op", "where (sizes: at most)", "choice"), rows)]
    return "\n".join(["## Launch table", "", *lines])


def split(row: Results) -> tuple[str, str]:
    """A row's conditions, and what it chooses."""
    where = {name: value for name, value in row.items() if name not in CHOICES}
    if "shipped" in row:
        return text(where) or "everywhere", "as shipped"
    choice = {name: row[name] for name in CHOICES if name in row}
    return text(where) or "everywhere", text({**choice.pop("blocks", {}), **choice})


def benchmark(found: Results) -> str:
    """A table a method and direction, and who isn't in it."""
    lines = ["## Benchmark", ""]
    if not found["rows"]:
        lines.append("Nothing was measured.")
    else:
        lines += [HOW.format(rank=found["rows"][0]["rank"]) + NOTE, *others(found["rows"])]
        for method in dict.fromkeys(row["method"] for row in found["rows"]):
            lines += ["", f"### {HEADINGS[method]}"]
            rows = [row for row in found["rows"] if row["method"] == method]
            for direction, title in DIRECTIONS.items():
                if part := [row for row in rows if row["direction"] == direction]:
                    lines += ["", f"#### {title}, {part[0]['dtype']}", "", times(part)]
    if found["failures"]:
        lines += ["", "### Failed", "", *listed(found["failures"])]
    if found["left_out"]:
        lines += ["", "### Left out", "", *left_out(found["left_out"])]
    return "\n".join(lines)


def others(rows: Iterable[Results]) -> list[str]:
    """What is different for the other projects that were timed, and what they have kernels for."""
    measured = {row["contender"] for row in rows}
    peers = [peer for name, peer in PEERS.items() if name in measured]
    if not peers:
        return []
    names = ", ".join(peer.title for peer in peers)
    covered = [f"{peer.title} has kernels for {' and '.join(HEADINGS[case] for case in peer.cases)}" for peer in peers]
    return ["", DTYPES.format(peers=names, coverage="; ".join(covered))]


def times(rows: Sequence[Results]) -> str:
    """One method and direction: a line a size and number of tokens."""
    columns = [name for name in TITLES if name != "lorafam" and any(row["contender"] == name for row in rows)]
    cases: dict[tuple[int, int], dict[str, Results]] = defaultdict(dict)
    for row in rows:
        cases[row["size"], row["tokens"]][row["contender"]] = row
    lines = []
    for (size, tokens), of in cases.items():
        ours = f"{1e3 * of['lorafam']['median_seconds']:.3f}" if "lorafam" in of else "-"
        lines.append((f"{size}²", tokens, ours, *(multiple(of.get(name)) for name in columns)))
    return grid(("size", "tokens", "lorafam ms", *(TITLES[name] for name in columns)), lines)


def multiple(row: Results | None) -> str:
    return "-" if row is None or row["ratio"] is None else f"{row['ratio']:.2f}x"


def left_out(rows: Iterable[Results]) -> list[str]:
    """A line a contender, method and reason, with the cases it is about."""
    cases: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows:
        of = cases[row["contender"], row.get("method", ""), row["reason"]]
        if "size" in row:
            of.append(f"{row['size']}² x {row['tokens']} {DIRECTIONS[row['direction']]}")
    lines = []
    for (contender, method, reason), of in cases.items():
        where = f", {HEADINGS[method]}" if method else ""
        about = f" ({'; '.join(of)})" if of else ""
        lines.append(f"- {TITLES[contender]}{where}: {escaped(reason)}{about}")
    return lines


def listed(reasons: Mapping[str, str]) -> list[str]:
    return [f"- `{name}`: {escaped(why)}" for name, why in reasons.items()]


def text(values: Mapping[str, Any]) -> str:
    """{"tokens": 16, "dtypes": ["bfloat16"]} → tokens 16, dtypes bfloat16."""
    shown = {name: " or ".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def grid(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(escaped(str(cell)) for cell in line) + " |" for line in lines)


def escaped(cell: str) -> str:
    """As one cell or list entry of Markdown."""
    return " ".join(cell.split()).replace("|", "\\|").replace("<", "\\<")
