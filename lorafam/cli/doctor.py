"""`lorafam doctor`: versions, devices, and which backend runs each op and why."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from ..finetune.errors import one_line
from .errors import BAD_INPUT, fail

PACKAGES = ("lorafam", "torch", "numba", "triton", "bitsandbytes", "peft", "transformers", "accelerate", "safetensors")
# what decides how fast the CPU kernels run
CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
# exit code where a kernel doesn't compile: not the input's fault
FAILED = 1
_CPUINFO = Path("/proc/cpuinfo")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a bug report.")] = False,
    dump: Annotated[
        Path | None,
        typer.Option(
            "--dump-kernels",
            metavar="DIR",
            help="Compile every GPU kernel for every architecture; write assembly, binaries and kernels.json to DIR.",
        ),
    ] = None,
) -> None:
    """Show versions, devices, and which backend runs each op and why."""
    if dump is not None:
        _dump(dump)
        return
    facts = report()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        show(facts)
    if facts["backend_error"]:
        fail(facts["backend_error"], command="lorafam doctor", code=BAD_INPUT)


def _dump(folder: Path) -> None:
    try:
        from ..inspect.every_kernel import compiled, dump_kernels, failures
    except ImportError as error:
        fail(f"--dump-kernels: triton can't be imported: {error}", command="lorafam doctor", code=BAD_INPUT)
    if folder.exists() and not folder.is_dir():
        fail(f"--dump-kernels: expected a folder, {folder} is a file", command="lorafam doctor", code=BAD_INPUT)
    rows = dump_kernels(folder)
    kernels = compiled(rows)
    typer.echo(f"{len(kernels)} kernels for {len({row['target'] for row in kernels})} architectures in {folder}")
    if failed := failures(rows):
        for line in failed:
            typer.echo(line, err=True)
        fail(f"--dump-kernels: {len(failed)} didn't compile", command="lorafam doctor", code=FAILED)


def report() -> dict[str, Any]:
    """What there is to tell, as plain data."""
    import torch

    from ..backends import selection

    ops: list[dict[str, str]] = []
    error = None
    try:
        ops = [row._asdict() for row in selection.report()]
    except (RuntimeError, ValueError) as problem:
        error = one_line(problem)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": {
            **cpu(),
            "threads": torch.get_num_threads(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "LORAFAM_BACKEND": os.environ.get(selection.VARIABLE),
        "backend_error": error,
        "ops": ops,
    }


def cpu() -> dict[str, Any]:
    """Model, number of cores this process may use, and the features that matter to the kernels; null where they can't
    be known.
    """
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.is_file() else []
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = values.get("flags", values.get("Features", "")).split()
    return {
        "model": values.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": [name for name in CPU_FEATURES if name in flags] if flags else None,
    }


def show(told: dict[str, Any]) -> None:
    """The report as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("python", told["python"])
    for name, version in told["packages"].items():
        facts.add_row(name, version or "[yellow]not installed[/]")
    facts.add_row("platform", told["platform"])
    facts.add_row("cpu", told["cpu"]["model"])
    facts.add_row("cores, torch threads", f"{told['cpu']['cores']}, {told['cpu']['threads']}")
    features = told["cpu"]["features"]
    facts.add_row("cpu features", "not known" if features is None else " ".join(features) or "none that matter")
    for gpu in told["gpus"]:
        facts.add_row("gpu", f"{gpu['name']}, sm_{gpu['capability']}, {gpu['memory'] / 1e9:.0f} GB")
    if not told["gpus"]:
        facts.add_row("gpu", "none")
    facts.add_row("LORAFAM_BACKEND", told["LORAFAM_BACKEND"] or "not set")
    console.print(facts)
    console.print()
    if told["ops"]:
        ops = Table("op", "device", "backend", "why", box=None, padding=(0, 2, 0, 0), header_style="bold")
        for row in told["ops"]:
            ops.add_row(row["op"], row["device"], row["backend"], row["reason"])
        console.print(ops)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}{properties.minor}",
        "memory": properties.total_memory,
    }
