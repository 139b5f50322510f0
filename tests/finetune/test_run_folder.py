from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lorafam.files import LOCK
from lorafam.finetune import FinetuneConfig, InputError
from lorafam.finetune.checkpoints import Found
from lorafam.finetune.evaluate import HeldOut
from lorafam.finetune.run_folder import RunFolder, read_settings, settings_text
from tests.finetune.test_checkpoints import write as write_checkpoint


def config(output: Path, **changes: object) -> FinetuneConfig:
    return FinetuneConfig(**{"model": "m", "text": "t", "output": str(output), **changes})  # type: ignore[arg-type]


def opened(one: FinetuneConfig) -> Found:
    with RunFolder(one) as folder:
        return folder.open()


def test_settings_survive_yaml(tmp_path: Path) -> None:
    one = config(tmp_path, target_modules=("q_proj", "v_proj"), learning_rate=1e-5, quantize="nf4", text="té xt")
    values = yaml.safe_load(settings_text(one))
    assert "resume" not in values
    assert FinetuneConfig(**{**values, "target_modules": tuple(values["target_modules"])}) == one


def test_new_folder_is_made(tmp_path: Path) -> None:
    assert opened(config(tmp_path / "a" / "b")) == (None, ())
    assert os.listdir(tmp_path / "a" / "b") == ["run.yaml"]
    # a run that has nothing to lose yet may be started again
    assert opened(config(tmp_path / "a" / "b", rank=2)) == (None, ())
    assert read_settings(tmp_path / "a" / "b" / "run.yaml")["rank"] == 2


def test_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match=r"^output: expected a folder"):
        opened(config(tmp_path / "out"))
    with pytest.raises(InputError, match=r"^output: .* can't be written"):
        opened(config(tmp_path / "out" / "inside"))


@pytest.mark.parametrize("there", ["checkpoint-3", "adapter"])
def test_run_is_not_overwritten(there: str, tmp_path: Path) -> None:
    opened(config(tmp_path))
    write_checkpoint(tmp_path / there)
    with pytest.raises(InputError, match=r"^output: .* has a run already"):
        opened(config(tmp_path))


def test_resuming_takes_the_newest_checkpoint(tmp_path: Path) -> None:
    resume = dataclasses.replace(config(tmp_path), resume=True)
    with pytest.raises(InputError, match=r"^output: .* has no run to resume"):
        opened(resume)
    opened(config(tmp_path))
    assert opened(resume) == (None, ())
    write_checkpoint(tmp_path / "checkpoint-3")
    (tmp_path / ".saving-77" / "checkpoint-6").mkdir(parents=True)
    (write_checkpoint(tmp_path / "checkpoint-9") / "optimizer.pt").unlink()
    damaged = ("checkpoint-9: optimizer.pt is missing",)
    assert opened(resume) == (tmp_path / "checkpoint-3", damaged)
    assert not (tmp_path / "checkpoint-9").exists()
    assert not (tmp_path / ".saving-77").exists()


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    opened(config(tmp_path))
    with pytest.raises(InputError, match=r"^rank: the run in .* has 8, it can't go on with 4"):
        opened(config(tmp_path, rank=4, resume=True))
    assert opened(config(tmp_path, save_every=1, evaluate_every=7, resume=True)).newest is None


def test_held_out_losses_are_kept_for_the_same_text(tmp_path: Path) -> None:
    folder = RunFolder(config(tmp_path))
    folder.open()
    folder.write_held_out("hash", HeldOut((1.1, 2.0)))
    assert folder.read_before("hash") is None
    resumed = RunFolder(config(tmp_path, resume=True))
    assert resumed.read_before("hash") == HeldOut((1.1, 2.0))
    with pytest.raises(InputError, match=r"^text: t has changed"):
        resumed.read_before("another")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("a: [1", "can't be read as YAML"),
        ("- 1", "expected keys and values"),
        ("1: 2", "expected keys"),
    ],
)
def test_unusable_settings_file(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=rf"^config: .*{message}") as error:
        read_settings(path)
    assert "\n" not in str(error.value)


def test_empty_settings_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing\n")
    assert read_settings(tmp_path / "run.yaml") == {}


def test_two_runs_are_not_in_one_folder(tmp_path: Path) -> None:
    first, resumed = config(tmp_path), dataclasses.replace(config(tmp_path), resume=True)
    with RunFolder(first) as folder:
        folder.open()
        for other in (first, resumed):
            with pytest.raises(InputError, match=r"^output: another run is at work in "):
                opened(other)
    assert opened(resumed) == (None, ())
    assert os.listdir(tmp_path) == ["run.yaml"]


def test_a_link_in_the_lock_s_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match=r"^output: .* can't be written"):
        opened(config(tmp_path / "out"))
    assert (tmp_path / "mine").read_text() == "kept"


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"can't be kept from other processes: No locks available"):
        assert opened(config(tmp_path)) == (None, ())


def test_a_run_that_was_killed_keeps_nobody_out(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib; from lorafam.files import working_in\n"
        "with working_in(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert os.listdir(tmp_path) == [LOCK]
    assert opened(config(tmp_path)) == (None, ())
    assert os.listdir(tmp_path) == ["run.yaml"]
