"""The dump of all kernels: one that doesn't compile is told, and the others go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from lorafam.kernels.kernel_call import KernelCall

from lorafam.backends import triton_gpu
from lorafam.backends.triton_gpu.launch import launch
from lorafam.inspect import every_kernel
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="of compiled code only")

ROWS: list[dict[str, Any]] = [
    {"op": "dropout", "target": "sm_80", "dtype": "float16", "kernel": "dropout_kernel"},
    {"op": "row_norm", "target": "sm_90", "dtype": "float32", "error": "ValueError: no"},
]


@triton.jit
def _inner(x):
    tl.static_assert(x.dtype == tl.int8, "no int8")
    return x


@triton.jit
def wrong_kernel(x_ptr):
    tl.store(x_ptr, _inner(tl.load(x_ptr)))


def does_not_compile() -> None:
    call = KernelCall(wrong_kernel, (1,), {"x_ptr": torch.zeros(16), "enable_fp_fusion": True})
    launch(torch.device("cpu"), ("x_ptr",), lambda: call)


def calls(**sizes: int) -> Iterator[every_kernel.Call]:
    x = torch.zeros(8, 64, dtype=torch.float16)
    for op, run in (
        ("first", does_not_compile),
        ("first", does_not_compile),
        ("dropout", lambda: triton_gpu.dropout(x, torch.tensor(1), 0.1)),
    ):
        yield every_kernel.Call(op, torch.float16, run)


def test_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(every_kernel, "calls", calls)
    failed, right = every_kernel._dump_one(tmp_path, "sm_80")
    assert failed.keys() == {"op", "target", "dtype", "error"}
    assert (failed["op"], failed["target"], failed["dtype"]) == ("first", "sm_80", "float16")
    assert (right["kernel"], right["op"]) == ("dropout_kernel", "dropout")
    assert (tmp_path / right["ptx"].removeprefix(f"{tmp_path.name}/")).is_file()
    assert every_kernel.compiled([failed, right]) == [right]
    assert every_kernel.failures([failed, right]) == [f"first for sm_80, float16: {failed['error']}"]
    assert failed["error"].endswith("no int8")


def test_code_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(kernel: Any) -> None:
        raise ValueError("a turn is 1.5 turns of the source\nas above")

    monkeypatch.setattr(every_kernel, "calls", calls)
    monkeypatch.setattr(every_kernel, "machine_code", unreadable)
    rows = every_kernel._dump_one(tmp_path, "sm_80")
    assert every_kernel.compiled(rows) == []
    assert rows[1]["error"] == "dropout_kernel: ValueError: a turn is 1.5 turns of the source"


def test_the_doctor_names_them_and_exits_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from lorafam.cli.main import app

    monkeypatch.setattr(every_kernel, "dump_kernels", lambda folder: ROWS)
    result = CliRunner().invoke(app, ["doctor", "--dump-kernels", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stdout.startswith("1 kernels for 1 architectures")
    assert result.stderr.splitlines() == [
        "row_norm for sm_90, float32: ValueError: no",
        "lorafam doctor: --dump-kernels: 1 didn't compile",
    ]
    monkeypatch.setattr(every_kernel, "dump_kernels", lambda folder: ROWS[:1])
    assert CliRunner().invoke(app, ["doctor", "--dump-kernels", str(tmp_path)]).exit_code == 0


def test_the_page_is_not_written_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorafam.bench.kernel_table import __main__ as kernel_table

    monkeypatch.setattr(kernel_table, "simulator", SimpleNamespace)
    monkeypatch.setattr(kernel_table, "dump_kernels", lambda folder, targets: ROWS)
    with pytest.raises(SystemExit, match=r"these didn't compile:\nrow_norm for sm_90, float32: ValueError: no"):
        kernel_table._rows(None)
