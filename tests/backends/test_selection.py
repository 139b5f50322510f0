"""Which backend runs, what forces it, and that a slow path is never silent."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from lorafam import explain, quantize_nf4
from lorafam.backends import selection

CACHED = (selection._choose, selection._announce, selection._numba_failure, selection._triton_failure)


@pytest.fixture(autouse=True)
def _forget_choices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test pretends must not be remembered in others."""
    monkeypatch.delenv(selection.VARIABLE, raising=False)
    for cached in CACHED:
        cached.cache_clear()
    yield
    for cached in CACHED:
        cached.cache_clear()


def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_numba_failure", lambda: "numba can't be imported: not there")


def test_numba_runs_cpu_tensors() -> None:
    assert selection.choose("cpu")[:2] == ("numba", "CPU tensors")


@pytest.mark.parametrize("name", ["numba", "eager"])
def test_forced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(selection.VARIABLE, name)
    assert selection.choose("cpu") == (name, f"LORAFAM_BACKEND={name}", True)


def test_forced_backend_that_cannot_run_raises_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(selection.VARIABLE, "numba")
    with pytest.raises(RuntimeError, match="the tensors are on cuda"):
        selection.choose("cuda")
    without_numba(monkeypatch)
    with pytest.raises(RuntimeError, match="LORAFAM_BACKEND=numba: numba can't be imported: not there"):
        selection.choose("cpu")


def test_unknown_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(selection.VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"LORAFAM_BACKEND: expected one of triton, numba, .*, got 'fast'"):
        torch.ops.lorafam.dropout(torch.ones(2, 2), torch.tensor(1), 0.5)


def test_fallback_is_announced_once_and_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    without_numba(monkeypatch)
    with pytest.warns(selection.SlowPathWarning, match="numba can't be imported: not there"):
        weight = quantize_nf4(torch.randn(4, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight.dequantize()
    told = explain(weight, 16)
    assert told.backend == "eager"
    assert "not there" in told.reason


def test_what_triton_lacks_to_launch_is_told_before_anything_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compat = pytest.importorskip("lorafam.compat.triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(compat, "missing_to_launch", lambda: None)
    assert selection.choose("cuda").backend == "triton"
    monkeypatch.setattr(compat, "missing_to_launch", lambda: "triton finds no gcc")
    for cached in CACHED:
        cached.cache_clear()
    assert selection.choose("cuda") == ("eager", "triton finds no gcc", False)
    # doctor's rows
    assert {(row.backend, row.reason) for row in selection.report() if row.device == "cuda"} == {
        ("eager", "triton finds no gcc")
    }
    monkeypatch.setenv(selection.VARIABLE, "triton")
    with pytest.raises(RuntimeError, match="LORAFAM_BACKEND=triton: triton finds no gcc"):
        selection.choose("cuda")


def test_report_has_every_op(monkeypatch: pytest.MonkeyPatch) -> None:
    # a GPU would be checked first
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = selection.report()
    assert {row.op for row in rows} == set(selection.OPS)
    assert {(row.device, row.backend) for row in rows} == {("cpu", "numba")}


@pytest.mark.parametrize("tokens", [-1, 2.5, True])
def test_explain_refuses_what_is_no_number_of_tokens(tokens: object) -> None:
    with pytest.raises(ValueError, match="M: expected a number of tokens"):
        explain(torch.ones(2, 2), tokens)  # type: ignore[arg-type]
