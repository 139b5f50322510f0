"""Which dense product runs: the faster one, timed once and kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorafam.backends.numba_cpu import dense_choice

WEIGHT = torch.zeros(8, 4)


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFAM_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("LORAFAM_DENSE", raising=False)
    _forget(monkeypatch)


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(dense_choice, "_chosen", {})
    dense_choice._file.cache_clear()


def _slow(name: str, seconds: float, calls: list[str]) -> Callable[[], str]:
    def call() -> str:
        calls.append(name)
        time.sleep(seconds)
        return name

    return call


def _run(own: float, platform: float, tokens: int = 64) -> tuple[str, int]:
    """What was taken, and how many calls it took."""
    calls: list[str] = []
    taken = dense_choice.faster(
        "forward", WEIGHT, torch.float32, tokens, _slow("own", own, calls), _slow("platform", platform, calls)
    )
    return taken, len(calls)


@pytest.mark.parametrize(("own", "platform", "taken"), [(0.001, 0.01, "own"), (0.01, 0.001, "platform")])
def test_the_faster_one_is_timed_once_and_kept(
    own: float, platform: float, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, calls = _run(own, platform)
    assert (found, calls > 4) == (taken, True)
    # whatever it would take now
    assert _run(platform, own) == (taken, 1)
    _forget(monkeypatch)
    assert _run(platform, own) == (taken, 1)
    # up to the next power of two it is the same call
    assert _run(platform, own, tokens=33) == (taken, 1)
    assert _run(own, platform, tokens=65)[1] > 4


def test_equal_ones_stay_with_the_platform() -> None:
    assert _run(0.005, 0.005)[0] == "platform"


def test_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFAM_DENSE", "own")
    assert _run(0.01, 0.0) == ("own", 1)
    monkeypatch.setenv("LORAFAM_DENSE", "fast")
    with pytest.raises(ValueError, match="LORAFAM_DENSE: expected 'own' or 'platform', got 'fast'"):
        _run(0.0, 0.0)


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"forward 8x4 64 float32 float32": 3}', "{"])
def test_a_damaged_file_is_timed_again(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(0.001, 0.01)[0] == "own"
    dense_choice._file().write_text(text)
    _forget(monkeypatch)
    assert _run(0.01, 0.001)[0] == "platform"
    _forget(monkeypatch)
    assert _run(0.001, 0.01) == ("platform", 1)


def test_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LORAFAM_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="timed in each process"):
        assert _run(0.001, 0.01)[0] == "own"
    assert _run(0.01, 0.001) == ("own", 1)
