"""What the hardware counts while a kernel runs, by ncu; where that isn't permitted, times alone by torch's profiler."""

from __future__ import annotations

import csv
import functools
import io
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..cases import Case, Context, LeftOutError
from ..device import device

N, K, RANK = 14336, 4096, 16
# ncu's metric → what the page calls it
METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes.sum.per_second": "bytes/s",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM %",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "issue slots %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor cores %",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "bank conflicts",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "stalled on memory",
    "smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio": "stalled on shared memory",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "stalled at barriers",
    "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio": "stalled on latency",
}
NOT_PERMITTED = "ERR_NVGPUCTRPERM"
SECONDS = 240.0
# (op as the tuner names it, tokens)
CALLS = (
    ("lora_linear", 1), ("lora_linear", 16), ("lora_linear", 128), ("lora_linear", 2048), ("lora_project", 16),
    ("lora_project", 2048), ("lora_linear_grad", 2048), ("lora_grad_pass", 2048), ("nf4_dequantize", 0),
)  # fmt: skip


def cases(context: Context) -> Iterator[Case]:
    for op, tokens in CALLS:
        name = name_of(op, tokens)
        yield Case(name, functools.partial(counted, name, op, tokens), expects=60, limit=SECONDS + 60)


def name_of(op: str, tokens: int) -> str:
    return f"{op}, {tokens} tokens" if tokens else op


def counted(name: str, op: str, tokens: int) -> dict[str, Any]:
    """Each kernel of a call with its metrics, and by what they were found."""
    program = device().tool("ncu")
    why = "ncu is not installed"
    if program is not None:
        watched = [sys.executable, "-m", "lorafam.bench.gpu.profiled", op, str(tokens)]
        options = ["--csv", "--page", "raw", "--print-units", "base", "--profile-from-start", "off"]
        command = [program, *options, "--target-processes", "all", "--metrics", ",".join(METRICS), *watched]
        try:
            done = device().run_tool(command, SECONDS)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"ncu: not done after {SECONDS:.0f} s") from None
        if NOT_PERMITTED not in done.stdout + done.stderr:
            return {"call": name, "by": "ncu", "kernels": parsed(done.stdout, done.stderr)}
        why = "ncu may not read the counters here (ERR_NVGPUCTRPERM)"
    kernels = device().kernel_times(functools.partial(_run, op, tokens))
    if not kernels:
        raise LeftOutError(f"{why}, and torch's profiler saw no kernel")
    found = [{"kernel": kernel, "metrics": {"ns": nanoseconds}} for kernel, nanoseconds in kernels]
    return {"call": name, "by": "torch.profiler", "why": why, "kernels": found}


def parsed(output: str, errors: str = "") -> list[dict[str, Any]]:
    """From `ncu --csv --page raw`: a line of names, one of units, one a kernel; before them what the program printed.

    Raises RuntimeError where there is no kernel.
    """
    lines = [line for line in output.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    kernels = [{"kernel": row["Kernel Name"], "metrics": _metrics(row)} for row in rows if row.get("ID")]
    if not kernels:
        said = (output + errors).strip().splitlines()[-1:] or [""]
        raise RuntimeError(f"ncu saw no kernel: {said[0]}")
    return kernels


def _metrics(row: Mapping[str, str]) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for metric, name in METRICS.items():
        text = (row.get(metric) or "").replace(",", "")
        try:
            metrics[name] = float(text)
        except ValueError:
            # "n/a": this chip or this ncu doesn't have it
            metrics[name] = None
    return metrics


def _run(op: str, tokens: int) -> None:
    made = call_of(op, tokens)
    for _ in range(3):
        made()


@functools.lru_cache(maxsize=1)
def call_of(op: str, tokens: int, shape: tuple[int, int] = (N, K)) -> Any:
    """The op on a layer's operands."""
    from lorafam.kernels.paths import prefer_paths

    from lorafam.tune.points import points
    from lorafam.tune.workload import workload

    gpu = device()
    n, k = (min(size, gpu.largest or size) for size in shape)
    point = points([op], [(n, k)], [tokens or 1], RANK)[0]
    work = workload(point, gpu.where)
    # as lorafam would run it: many tokens take the staged path
    prefer_paths(gpu.architecture, {})
    return functools.partial(getattr(gpu.ops, work.op), *work.arguments)


def main(arguments: Sequence[str]) -> None:
    """One call, of which ncu sees the last."""
    device().profiled(call_of(arguments[0], int(arguments[1])))
