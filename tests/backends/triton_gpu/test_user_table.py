"""The table of a user's own GPU: found at the first launch, before the shipped rows; what can't be used is told."""

from __future__ import annotations

import json
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lorafam.kernels.launch_table import launch_config, prefer
from lorafam.kernels.paths import FUSED, STAGED, TRITON, Route, path_of, prefer_paths

from lorafam.backends import user_files
from lorafam.backends.triton_gpu import launch, user_table

ROW = {"tokens": 8, "blocks": {"BLOCK_M": 16, "BLOCK_K": 64}, "num_warps": 1, "num_stages": 1}
PATHS = {"lora_linear": [{"tokens": 8, "path": "staged", "product": "triton"}]}
TABLE = {"gpu": "Some GPU", "architecture": "sm_90", "points": [], "rows": {"dropout": [ROW]}, "paths": PATHS}


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv(user_files.CACHE_DIR, str(tmp_path))
    monkeypatch.setattr(user_table, "_in_use", {})
    prefer("sm_90", {})
    prefer_paths("sm_90", {})
    yield
    prefer("sm_90", {})
    prefer_paths("sm_90", {})


def write(content: Any, model: str = "Some GPU") -> None:
    user_files.keep(user_table.table_file(model), content)


def warps(tokens: int = 8) -> int:
    return launch_config("dropout", "sm_90", "float16", tokens).num_warps


def test_it_is_used_from_the_first_launch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    write(TABLE)
    properties = types.SimpleNamespace(name="Some GPU", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "hip", None)
    shipped = warps()
    launch._gpu_architecture.cache_clear()
    assert launch.architecture(torch.device("cuda", 0)) == "sm_90"
    launch._gpu_architecture.cache_clear()
    assert (warps(), warps(9)) == (1, shipped)
    assert path_of("lora_linear", "sm_90", 8) == Route(STAGED, TRITON)
    assert path_of("lora_linear", "sm_90", 9) == Route(FUSED)


def test_no_file_no_word() -> None:
    shipped = warps()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        user_table.use("Some GPU", "sm_90")
    assert warps() == shipped


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is damaged: "),
        ("[]", "is damaged: expected an object with points, rows and paths"),
        (json.dumps({**TABLE, "architecture": "sm_80"}), "expected architecture sm_90, got 'sm_80'"),
        (json.dumps({**TABLE, "rows": {"lora": [ROW]}}), "expected a kernel .* got 'lora'"),
        (json.dumps({**TABLE, "paths": {"dropout": []}}), r"paths: expected an op \(lora_linear, .*, got 'dropout'"),
        (json.dumps({**TABLE, "rows": {"dropout": [{**ROW, "tokens": "8"}]}}), "tokens: expected a whole number"),
    ],
)
def test_one_that_cannot_be_used_is_told_and_the_shipped_rows_stay(content: str, told: str) -> None:
    shipped = warps()
    user_table.table_file("Some GPU").write_text(content)
    with pytest.warns(UserWarning, match=f"shipped launch table, without what was tuned: .*{told}"):
        user_table.use("Some GPU", "sm_90")
    assert warps() == shipped


def test_two_models_of_one_architecture() -> None:
    write(TABLE)
    write({**TABLE, "rows": {}}, "Another GPU")
    user_table.use("Some GPU", "sm_90")
    with pytest.warns(UserWarning, match="tuned for Another GPU isn't used: Some GPU's is"):
        user_table.use("Another GPU", "sm_90")
    assert warps() == 1
