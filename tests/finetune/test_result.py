from pathlib import Path

import pytest

from lorafam.finetune import FinetuneConfig, FinetuneResult
from lorafam.finetune.evaluate import HeldOut


def result(step_seconds: tuple[float, ...]) -> FinetuneResult:
    return FinetuneResult(
        config=FinetuneConfig(model="m", text="t", output="o"),
        before=HeldOut((3.0, 2.0)),
        after=HeldOut((2.0, 1.5)),
        step_seconds=step_seconds,
        trainable_parameters=10,
        resident_after_loading=100,
        peak_resident=130,
        memory_source="kernel",
        adapter=Path("a"),
        log=Path("l"),
        curves=Path("c"),
    )


def test_derived_figures() -> None:
    assert result((9.0, 1.0, 1.2)).seconds_per_step == 1.2
    assert result(()).seconds_per_step is None
    assert result(()).fall == (0.75, pytest.approx(0.25))
    assert result(()).extra_memory == 30
