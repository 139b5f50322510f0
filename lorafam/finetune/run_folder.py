"""The output folder of a run: what lies where, and whether a run may start or go on in it.

run.yaml        the settings
held_out.json   the held-out loss of every chunk, before and after, and the text's hash
log.jsonl       a line a step
loss.png        the loss curves
checkpoint-N/   the newest two, to go on from
adapter/        the result, in PEFT's format
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from ..config import METHODS
from ..files import FolderInUseError, working_in, write_text
from .checkpoints import Found, find_newest, remove_leftovers, remove_newer
from .errors import InputError, one_line
from .evaluate import HeldOut
from .settings import FREE_ON_RESUME, FinetuneConfig


class RunFolder:
    """Paths in the output folder of `config`, and what is written there besides the log and checkpoints."""

    def __init__(self, config: FinetuneConfig) -> None:
        self.config = config
        self.path = Path(config.output)
        self.settings = self.path / "run.yaml"
        self.held_out = self.path / "held_out.json"
        self.log = self.path / "log.jsonl"
        self.curves = self.path / "loss.png"
        self.adapter = self.path / "adapter"
        self._work = contextlib.ExitStack()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *raised: object) -> None:
        self._work.close()

    def open(self) -> Found:
        """Makes the folder ready and returns the checkpoint to go on from, one that is None to start at the beginning.
        No other run gets in until `with` this folder ends.

        Raises InputError: the folder can't be written; it has a run and `resume` isn't set; it has none and `resume`
        is; its run has other settings; another run is at work in it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"output: expected a folder, {self.path} is a file")
        if self.config.resume:
            if not self.settings.is_file():
                raise InputError(f"output: {self.path} has no run to resume (no {self.settings.name})")
            self._check_settings()
        elif self.adapter.exists() or find_newest(self.path).newest is not None:
            raise InputError(f"output: {self.path} has a run already; resume it (--resume) or choose another folder")
        checkpoints = Found(None, ())
        try:
            self._work.enter_context(working_in(self.path))
            write_text(self.settings, settings_text(self.config))
            remove_leftovers(self.path)
            if self.config.resume:
                checkpoints = find_newest(self.path, allocator=METHODS[self.config.method].allocates_ranks)
            remove_newer(self.path, checkpoints.newest)
        except FolderInUseError:
            raise InputError(f"output: another run is at work in {self.path}") from None
        except OSError as error:
            raise InputError(f"output: {self.path} can't be written ({error.strerror})") from None
        return checkpoints

    def read_before(self, text_sha256: str) -> HeldOut | None:
        """The evaluation before training that an interrupted run has left. Raises InputError when it was on another
        text.
        """
        if not self.config.resume or not self.held_out.is_file():
            return None
        saved = json.loads(self.held_out.read_text(encoding="utf-8"))
        if saved["text_sha256"] != text_sha256:
            raise InputError(f"text: {self.config.text} has changed since the run in {self.path} began")
        return HeldOut(tuple(saved["before"]))

    def write_held_out(self, text_sha256: str, before: HeldOut, after: HeldOut | None = None) -> None:
        values = {
            "text_sha256": text_sha256,
            "before": before.losses,
            "after": None if after is None else after.losses,
        }
        write_text(self.held_out, json.dumps(values, allow_nan=False) + "\n")

    def _check_settings(self) -> None:
        saved, mine = read_settings(self.settings), _plain(self.config)
        for name, value in mine.items():
            if name not in FREE_ON_RESUME and name in saved and saved[name] != value:
                raise InputError(f"{name}: the run in {self.path} has {saved[name]!r}, it can't go on with {value!r}")


def settings_text(config: FinetuneConfig) -> str:
    """The settings as YAML; `resume` is no property of a run and is left out."""
    return yaml.safe_dump(
        {k: v for k, v in _plain(config).items() if k != "resume"}, sort_keys=False, allow_unicode=True
    )


def read_settings(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises InputError for one that is missing, unreadable or no mapping."""
    if not path.is_file():
        raise InputError(f"config: no such file: {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"config: {path} can't be read as YAML: {one_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"config: expected keys and values in {path}, got {type(values).__name__}")
    return values


def _plain(config: FinetuneConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    if config.target_modules is not None:
        values["target_modules"] = list(config.target_modules)
    return values
