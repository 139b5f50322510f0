from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from lorafam.backends import user_files
from lorafam.backends.user_files import keep, user_file


def test_by_model_and_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(user_files.CACHE_DIR, str(tmp_path))
    version = importlib.metadata.version("torch")
    assert user_file("kind", "Some GPU/1", ("torch",)) == tmp_path / f"kind-Some-GPU-1-{version}.json"
    monkeypatch.delenv(user_files.CACHE_DIR)
    assert user_file("kind", "x", ()).parent == Path.home() / ".cache" / "lorafam"


def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    keep(path, {"a": 1})
    with pytest.raises(TypeError):
        keep(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]
