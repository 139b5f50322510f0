"""Kernels that this processor's Numba compiles wrongly, or not at all: their calls go to eager PyTorch, with a word."""

from __future__ import annotations

import itertools
import json
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lorafam
from lorafam.backends import eager, numba_cpu, selection, user_files
from lorafam.backends.numba_cpu import dense_choice, self_check, together
from lorafam.backends.self_check_cases import Draw, cases
from lorafam.ops.library import OPS
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="of the CPU backend")
CPU = torch.device("cpu")
FOUND = self_check._found


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing is known, and nothing found out here is known elsewhere."""
    monkeypatch.setenv(user_files.CACHE_DIR, str(tmp_path))
    monkeypatch.setattr(self_check, "_found", FOUND)
    monkeypatch.delenv(selection.VARIABLE, raising=False)
    caches = (self_check._file, selection._announce)
    self_check.forget()
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    self_check.forget()
    for cache in caches:
        cache.cache_clear()


def break_(monkeypatch: pytest.MonkeyPatch, op: str, dtype: torch.dtype = torch.float32) -> list[int]:
    """The op's kernels err in calls of this dtype."""
    right, calls = getattr(numba_cpu, op), []

    def wrong(x: torch.Tensor, *args: Any) -> Any:
        calls.append(1)
        result = right(x, *args)
        return result * 1.01 if x.dtype == dtype else result

    monkeypatch.setattr(numba_cpu, op, wrong)
    return calls


def call(dtype: torch.dtype = torch.float32, op: str = "lora_linear", kind: str = "NF4", tokens: int = 12) -> Any:
    draw = Draw(3, eager, CPU)
    name = str(dtype).removeprefix("torch.")
    case = next(case for case in cases() if case.op == op and case.what == f"{kind}, {name}, {tokens} tokens")
    arguments = case.make(draw)
    return getattr(torch.ops.lorafam, op)(*arguments), getattr(eager, op)(*arguments)


def kept(folder: Path) -> dict[str, str | None]:
    (file,) = folder.glob("checked-cpu-kernels*.json")
    return json.loads(file.read_text())


def test_right_kernels_are_checked_once_and_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    assert list(kept(folder).values()) == [None]
    self_check.forget()
    monkeypatch.setattr(self_check, "_checked", lambda _: pytest.fail("again"))
    call()


def test_every_kind_passes_here() -> None:
    draw = Draw(0, eager, CPU)
    kinds = {(case.op, *self_check._made_for(case.make(draw))) for case in cases()}
    assert [kind for kind in kinds if self_check.failure_of(*kind) is not None] == []


def test_a_wrong_kernel_costs_the_calls_of_its_kind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_(monkeypatch, "lora_linear")
    with pytest.warns(
        selection.SlowPathWarning, match="lora_linear: failed its check on this processor: NF4, float32, 3"
    ):
        got, wanted = call()
    assert torch.equal(got, wanted)
    assert sorted(why is None for why in kept(folder).values()) == [False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # told once, kept, and nothing else is switched off
        call()
        call(torch.bfloat16)
        call(kind="dense", op="lora_linear_grad")
    assert sorted(why is None for why in kept(folder).values()) == [False, True, True]
    weight = lorafam.quantize_nf4(torch.randn(64, 128))
    told = lorafam.explain(weight, 16)
    assert (told.backend, "failed its check" in told.reason) == ("eager", True)
    rows = {row.op: row for row in selection.report() if row.device == "cpu"}
    (wrong,) = [row for name, row in rows.items() if name.startswith("lora_linear in float32 over 4 bits")]
    assert (wrong.backend, rows["lora_linear"].backend, len(rows)) == ("eager", "numba", len(OPS) + 1)


def test_a_kernel_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("Intrinsic has incorrect argument type!\n<16 x float>")

    monkeypatch.setattr(numba_cpu, "lora_project", broken)
    x, A = torch.randn(5, 64), torch.randn(4, 64)
    with pytest.warns(selection.SlowPathWarning, match="RuntimeError: Intrinsic has incorrect argument type!"):
        got = torch.ops.lorafam.lora_project(x, A, None, 0.0)
    assert torch.equal(got, eager.lora_project(x, A, None, 0.0))


@pytest.mark.parametrize("op", ["lora_project", "lora_linear_grad"])
def test_a_layer_is_not_run_in_one_piece_then(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole direction runs the same kernels without the ops."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(128, 64))
    lorafam.adapt(net, lorafam.AdapterConfig(target_modules=["0"], quantize="nf4", r=4))
    net[0].B.data.normal_()
    directions: list[int] = []
    run = together.forward
    monkeypatch.setattr(together, "forward", lambda *args: directions.append(1) or run(*args))
    x = torch.randn(20, 128, requires_grad=True)
    wanted = net(x)
    assert directions == [1]
    self_check.forget()
    self_check._file().unlink()
    break_(monkeypatch, op)
    with pytest.warns(selection.SlowPathWarning, match=f"{op}: failed its check"):
        net(x).sum().backward()
    y = net(x)
    assert directions == [1]
    torch.testing.assert_close(y, wanted)


def test_nothing_is_kept_of_a_check_that_memory_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = numba_cpu.lora_linear

    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(numba_cpu, "lora_linear", full)
    with pytest.raises(MemoryError):
        call()
    assert list(folder.glob("checked*.json")) == []
    monkeypatch.setattr(numba_cpu, "lora_linear", right)
    call()


@pytest.mark.parametrize("text", ["{", "[]", '{"lora_linear": 1}'])
def test_a_damaged_file_is_told_and_written_again(text: str, folder: Path) -> None:
    self_check._file().write_text(text)
    with pytest.warns(UserWarning, match="is damaged, so lorafam checks its CPU kernels again"):
        call()
    assert list(kept(folder).values()) == [None]


def test_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(self_check, "keep", refuse)
    with pytest.warns(UserWarning, match="the check of the CPU kernels can't be kept"):
        call()
    call()


def test_threads_that_start_together_check_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[self_check.Kind] = []
    monkeypatch.setattr(self_check, "_checked", checked.append)
    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(checked) == 1


def test_own_dense_kernels_are_checked_though_the_platform_s_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[str | None] = []
    monkeypatch.setattr(dense_choice, "_timed", lambda *_: dense_choice.PLATFORM)
    known = dense_choice.known
    monkeypatch.setattr(dense_choice, "known", lambda *args: ways.append(known(*args)) or known(*args))
    assert self_check.failure_of("lora_linear", torch.float32, four_bit=False) is None
    assert set(ways) == {dense_choice.OWN}
    assert dense_choice._always.get() is None


def test_every_op_of_its_own_has_cases_of_the_kind_it_is_called_in() -> None:
    """A call whose kind no case has would be trusted unseen."""
    draw = Draw(0, eager, CPU)
    kinds = {(case.op, *self_check._made_for(case.make(draw))) for case in cases()}
    for op in OPS:
        if getattr(numba_cpu, op) is getattr(eager, op):
            continue
        assert any(kind[0] == op for kind in kinds), op
    for op in ("lora_linear", "lora_linear_grad"):
        dtypes = (torch.float32, torch.bfloat16, torch.float16)
        assert {kind[1:] for kind in kinds if kind[0] == op} >= set(itertools.product(dtypes, (False, True)))
