from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from lorafam.bench.gpu import store
from lorafam.bench.gpu.store import OtherRunError, Record

RUN: dict[str, Any] = {"gpu": {"name": "a"}, "code": "1", "versions": {"torch": "2.11", "triton": "3.6"}, "date": "x"}


def test_a_record_is_whole_after_each_case(tmp_path: Path) -> None:
    path = tmp_path / "check" / "op.json"
    record = Record(path)
    record.begin("a", 5.0)
    assert (Record(path).running, Record(path).attempts, Record(path).limit) == ("a", 1, 5.0)
    record = Record(path)
    record.begin("a", 5.0)
    assert Record(path).attempts == 2
    record.end("a", "passed", value=3)
    record.finish()
    found = json.loads(path.read_text())
    assert found == {
        "item": "op", "finished": True, "running": None, "attempts": 0, "limit": 5.0,
        "cases": {"a": {"outcome": "passed", "value": 3}},
    }  # fmt: skip
    assert list(path.parent.iterdir()) == [path]


def test_another_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    assert store.folder_of(tmp_path, RUN) == (tmp_path, "")
    (tmp_path / "check.json").write_text("kept")
    assert store.folder_of(tmp_path, {**RUN, "date": "later"}) == (tmp_path, "")
    other = {**RUN, "code": "2", "versions": {"torch": "2.11", "triton": "3.9"}}
    inside, said = store.folder_of(tmp_path, other)
    assert inside.parent == tmp_path
    assert "code 1 there, 2 here; versions triton 3.6 there, 3.9 here" in said
    assert str(inside) in said
    assert store.folder_of(tmp_path, other)[0] == inside
    assert json.loads((tmp_path / store.RUN).read_text()) == RUN
    assert (tmp_path / "check.json").read_text() == "kept"
    assert store.folder_of(tmp_path, {**other, "code": "3"})[0] != inside


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    refused = pytest.raises(OtherRunError, match="another `make gpu` writes there")
    with store.held(tmp_path / "results"), refused, store.held(tmp_path / "results"):
        pass
    with store.held(tmp_path / "results"):
        pass


def test_taken_away_as_one_file_and_given_back(tmp_path: Path) -> None:
    there, archive = tmp_path / "there", tmp_path / "out" / "results.tar.gz"
    folder, _ = store.folder_of(there, RUN)
    Record(folder / "check" / "op.json").end("a", "passed")
    store.pack(there, archive)
    here = tmp_path / "here"
    store.unpack(archive, here)
    assert store.folder_of(here, RUN) == (here, "")
    assert Record(here / "check" / "op.json").cases == {"a": {"outcome": "passed"}}
    Record(here / "check" / "op.json").end("b", "passed")
    # what is there already is newer
    store.unpack(archive, here)
    assert set(Record(here / "check" / "op.json").cases) == {"a", "b"}
    assert list(archive.parent.iterdir()) == [archive]
    # another run's results would be lost when this one's are packed
    store.folder_of(tmp_path / "another", {**RUN, "date": "later"})
    with pytest.raises(OtherRunError, match="hold different runs' results"):
        store.unpack(archive, tmp_path / "another")


def test_unpacking_that_was_cut_off_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, archive = store.folder_of(tmp_path / "there", RUN)[0], tmp_path / "results.tar.gz"
    for name in ("bench/a", "tune/b"):
        Record(there / f"{name}.json").end("a", "passed")
    store.pack(there, archive)
    extract = tarfile.TarFile.extract

    def cut(self: tarfile.TarFile, path: Path, members: list[tarfile.TarInfo], **_: Any) -> None:
        for member in members[:-1]:
            extract(self, member, path, filter="data")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "extractall", cut)
        with pytest.raises(KeyboardInterrupt):
            store.unpack(archive, tmp_path / "here")
    (tmp_path / "here/tune/b.json").unlink()
    store.unpack(archive, tmp_path / "here")
    assert Record(tmp_path / "here/tune/b.json").cases == {"a": {"outcome": "passed"}}


def test_a_damaged_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / store.RUN).write_text("{")
    with pytest.raises(OtherRunError, match="is damaged"):
        store.folder_of(tmp_path, RUN)


def test_the_digest_is_of_the_code_alone(tmp_path: Path) -> None:
    for name in ("lorafam/a.py", "lorafam/kernels/b.json", "lorafam/bench/c.py", "tests/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = store.code_digest(tmp_path)
    (tmp_path / "lorafam/bench/c.py").write_text("2")
    (tmp_path / "tests/d.py").write_text("2")
    assert store.code_digest(tmp_path) == before
    (tmp_path / "lorafam/kernels/b.json").write_text("2")
    assert store.code_digest(tmp_path) != before
