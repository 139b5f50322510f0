"""The check of a GPU never seen before: right kernels pass, a wrong one is switched off and told."""

from __future__ import annotations

import json
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafam.backends import eager, numba_cpu, selection, self_check, user_files

CPU = torch.device("cpu")


def altered(**changes: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{name: getattr(numba_cpu, name) for name in numba_cpu.__all__} | changes)


def test_right_kernels_pass() -> None:
    assert self_check.run_checks(numba_cpu, eager, CPU) == {}


def test_every_op_is_checked() -> None:
    assert {op for op, _, _ in self_check._cases(eager, CPU)} == set(selection.OPS)


@pytest.mark.parametrize("op", sorted(selection.OPS))
def test_a_wrong_kernel_is_found(op: str) -> None:
    def wrong(*arguments: Any) -> Any:
        result = getattr(numba_cpu, op)(*arguments)
        if op == "adalora_importance":
            arguments[2][0].mul_(1.01)
        for tensor in self_check._tensors(result):
            tensor.view(-1)[0] += 1
        return result

    found = self_check.run_checks(altered(**{op: wrong}), eager, CPU)
    assert set(found) == {op}


def test_a_kernel_that_raises_is_found() -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("out of shared memory")

    found = self_check.run_checks(altered(dropout=broken), eager, CPU)
    assert found["dropout"].endswith("RuntimeError: out of shared memory")


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A GPU that exists in name only, whose kernels' check is the test's."""
    monkeypatch.setenv(user_files.CACHE_DIR, str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU/1")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(selection, "_triton_failure", lambda _: None)
    monkeypatch.delenv(selection.VARIABLE, raising=False)
    self_check._failures.cache_clear()
    selection._choose.cache_clear()
    yield
    # a real GPU, or none, is chosen for anew
    self_check._failures.cache_clear()
    selection._choose.cache_clear()


@pytest.mark.usefixtures("_gpu")
def test_what_failed_goes_to_eager_and_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(self_check, "run_checks", lambda *_: {"dropout": "wrong"})
    with pytest.warns(UserWarning, match="lorafam checks its kernels on Some GPU/1"):
        assert selection.choose("cuda", "lora_linear").backend == "triton"
    choice = selection.choose("cuda", "dropout")
    assert (choice.backend, choice.asked_for) == ("eager", False)
    assert choice.reason == "dropout failed its check on this GPU: wrong"
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text()) == {"dropout": "wrong"}
    self_check._failures.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert selection.choose("cuda", "dropout").backend == "eager"


@pytest.mark.usefixtures("_gpu")
def test_a_damaged_file_is_told_and_checked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(self_check, "run_checks", lambda *_: {})
    self_check._file("Some GPU/1").write_text("{")
    with pytest.warns(UserWarning, match="is damaged"):
        assert selection.choose("cuda", "dropout").backend == "triton"


def test_a_group_in_one_launch_is_checked_with_biases_and_without() -> None:
    few = [
        [bias is not None for bias in arguments[-1]]
        for op, _, arguments in self_check._cases(eager, CPU)
        if op == "lora_linear_group" and len(arguments[0]) <= 16 and arguments[1][0].dtype == torch.uint8
    ]
    assert {(True, True), (False, False)} <= set(map(tuple, few))
