"""Modelled times beside what the parts of `make gpu` write, here with made-up answers of the GPU and its tools."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
from lorafam.bench.gpu import store, worker
from lorafam.bench.gpu.cases import Case
from lorafam.bench.gpu.gathered import gathered
from lorafam.bench.gpu.parts import counters, peaks, tuning
from lorafam.bench.kernel_table.cards import CARDS
from lorafam.bench.kernel_table.measured import HEAD, NOTHING, Call, Models, card_of, table
from lorafam.bench.kernel_table.times import Modelled

from lorafam.tune.points import Point
from tests.bench.gpu.fake_device import FakeDevice

H100 = {"name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "multiprocessors": 132, "memory_bytes": 85e9}
RUN = {
    "gpu": {**H100, "driver": None}, "versions": {"torch": "2.11.0", "triton": "3.6.0"}, "code": "c0de", "commit": None,
    "date": "2026-11-26T09:00+00:00",
}  # fmt: skip
# 4 of the 10 µs that it is modelled to take are the issue of instructions
MODEL = Modelled(1e-5, "memory", 1e-5, {"memory": 1e-5, "issue": 4e-6}, 32e6, 2e6)


def models(*calls: Call) -> Models:
    return {call: dict.fromkeys(CARDS, MODEL) for call in calls}


def results(folder: Path, run: dict[str, Any], *parts: tuple[str, Case]) -> None:
    """What `make gpu` leaves of these items' cases."""
    store.write_json_in(folder, run)
    for item, case in parts:
        assert worker.done(case, store.Record(folder / f"{item}.json"))
    gathered(folder, [])


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAFAM_CACHE_DIR", str(tmp_path / "user"))
    for module in (counters, peaks, tuning):
        monkeypatch.setattr(module, "device", FakeDevice)
    monkeypatch.setattr("lorafam.bench.gpu.device.device", FakeDevice)


def test_nothing_is_measured_yet(tmp_path: Path) -> None:
    assert table(tmp_path, models()) == [NOTHING]


def test_a_tuned_and_a_counted_kernel(tmp_path: Path) -> None:
    small, large = Call("row_norm", 64, 128, 0), Call("lora_linear", counters.N, counters.K, 16)
    name = counters.name_of("lora_linear", 16)
    results(
        tmp_path / "results" / "h100",
        RUN,
        ("bench/peaks", Case("copy", lambda: {"bytes_a_second": 2e12})),
        ("profile/kernels", Case(name, partial(counters.counted, name, "lora_linear", 16))),
        ("tune/x", Case("x", partial(tuning.tuned, Point(*small, 16, "bfloat16", "nf4")))),
    )
    about, _, head, _, *rows = table(tmp_path / "results", models(small, large, Call("nf4_dequantize", 4096, 4096, 0)))
    assert about == "NVIDIA H100 80GB HBM3; torch 2.11.0, triton 3.6.0; code c0de; 2026-11-26T09:00+00:00"
    assert tuple(head.strip("| ").split(" | ")) == HEAD
    tuned, counted, not_yet = (row.strip("| ").split(" | ") for row in rows)
    # the made-up GPU takes a µs a warp
    warps = float(tuned[2])
    assert warps in (4.0, 8.0)
    assert tuned[:4] == ["`row_norm`, 64 x 128", "10.0 memory", f"{warps:.1f}", f"{warps / 10:.2f}"]
    assert tuned[4:] == ["-", "-", f"{100 * 32 / warps / 2:.0f} %", "-", "-", "-"]
    assert counted == [
        "`lora_linear`, 14336 x 4096, 16 tokens", "10.0 memory", "-", "-", "19.0", "1.90", "84 %", "32.0 / 47.7",
        "40 / 61 %", "2.00e+06 / 1.23e+04",
    ]  # fmt: skip
    assert not_yet == ["`nf4_dequantize` to bf16, 4096 x 4096", "10.0 memory", *["-"] * 8]


def test_times_alone_where_counters_are_not_permitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDevice, "tool", lambda self, name: None)
    monkeypatch.setattr(counters, "_run", lambda *_: None)
    results(
        tmp_path / "h100",
        RUN,
        ("profile/kernels", Case("x", partial(counters.counted, "lora_linear, 1 tokens", "lora_linear", 1))),
    )
    row = table(tmp_path, models(Call("lora_linear", counters.N, counters.K, 1)))[-1]
    assert row.strip("| ").split(" | ")[4:] == ["12.3", "1.23", "-", "-", "-", "-"]


def test_a_card_that_is_not_modelled_is_named(tmp_path: Path) -> None:
    run = {**RUN, "gpu": {**H100, "name": "NVIDIA H100 PCIe", "multiprocessors": 114, "driver": None}}
    results(tmp_path / "h100-pcie", run)
    assert table(tmp_path, models())[2] == "No times are modelled for this card."


@pytest.mark.parametrize(
    ("name", "capability", "multiprocessors", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "9.0", 132, "H100"),
        ("NVIDIA H200", "9.0", 132, "H200"),
        ("NVIDIA A100-SXM4-80GB", "8.0", 108, "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", "8.0", 108, None),
        ("NVIDIA GeForce RTX 4090", "8.9", 128, "RTX 4090"),
        ("NVIDIA H100 PCIe", "9.0", 114, None),
    ],
)
def test_which_card_a_gpu_is(name: str, capability: str, multiprocessors: int, expected: str | None) -> None:
    found = card_of({"name": name, "compute_capability": capability, "multiprocessors": multiprocessors})
    assert (found and found.name) == expected
