"""What `make gpu` leaves in RESULTS: one small JSON an item, whole at any time, and the run that they are of.

run.json                card, versions, digest of the code: another of these gets a folder of its own inside
check/lora_linear.json  {"item", "finished", "running", "attempts", "cases": {case → {"outcome", …}}}
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorafam.files import write_json

Case = dict[str, Any]
RUN = "run.json"
# what decides whether two runs may be put together
SAME = ("gpu", "code", "versions")


class Record:
    """The file of an item. One process writes it at a time: the item's own, or the runner when that one has ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.finished: bool = known.get("finished", False)
        # the case that was begun and hasn't ended
        self.running: str | None = known.get("running")
        self.attempts: int = known.get("attempts", 0)
        # seconds that the running case may take
        self.limit: float = known.get("limit", 0.0)
        self.cases: dict[str, Case] = known.get("cases", {})

    def begin(self, case: str, limit: float) -> None:
        """Before a case: if the process ends now, it is known where."""
        self.limit = limit
        self.attempts = self.attempts + 1 if self.running == case else 1
        self.running = case
        self.write()

    def end(self, case: str, outcome: str, **found: Any) -> None:
        self.cases[case] = {"outcome": outcome, **found}
        self.running, self.attempts = None, 0
        self.write()

    def finish(self) -> None:
        self.finished = True
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: getattr(self, name) for name in ("finished", "running", "attempts", "limit")}
        write_json(self.path, {"item": self.path.stem, **state, "cases": self.cases})


class OtherRunError(RuntimeError):
    """Results can't go where they were asked to go; the message says why."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other runs out of `folder` meanwhile. Raises OtherRunError where one is there."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".held", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OtherRunError(f"{folder}: another `make gpu` writes there") from None
        yield


def folder_of(results: Path, run: Mapping[str, Any]) -> tuple[Path, str]:
    """Where a run's results go, and what is to be said of it: `results`, or a folder inside where those there are of
    another card, version or code. Nothing that an earlier run left is changed.
    """
    known = _run_of(results)
    if known is None:
        write_json_in(results, run)
        return results, ""
    different = [name for name in SAME if known.get(name) != run[name]]
    if not different:
        return results, ""
    inside = results / f"run-{digest_of(run)}"
    if _run_of(inside) is None:
        write_json_in(inside, run)
    said = "; ".join(f"{name} {_changed(known.get(name), run[name])}" for name in different)
    return inside, f"{results} holds another run's results ({said}): they stay, this run's go to {inside}"


def write_json_in(folder: Path, run: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN, run)


def digest_of(run: Mapping[str, Any]) -> str:
    text = json.dumps([run[name] for name in SAME], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def code_digest(root: Path) -> str:
    """Of every source of lorafam and its kernels, however it is named in version control, which needn't be there."""
    digest = hashlib.sha256()
    bench = root / "lorafam" / "bench"
    for path in sorted((root / "lorafam").rglob("*")):
        if path.suffix in (".py", ".json") and bench not in path.parents:
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def pack(folder: Path, archive: Path) -> None:
    """All of `folder` as one file, whole at any time: some machines give back a handful of files alone."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    temporary = archive.with_name(f".{archive.name}.new")
    with tarfile.open(temporary, "w:gz") as packed:
        for path in sorted(folder.rglob("*")):
            # caches are large and found again
            if path.is_file() and not any(part.startswith((".", "cache")) for part in path.relative_to(folder).parts):
                packed.add(path, path.relative_to(folder))
    temporary.replace(archive)


def unpack(archive: Path, folder: Path) -> None:
    """What `pack` left, where `folder` has no run yet. Raises OtherRunError where it has one that `archive` isn't of,
    which the next `pack` would overwrite.
    """
    if not archive.is_file():
        return
    known = _run_of(folder)
    with tarfile.open(archive) as packed:
        if known is None:
            folder.mkdir(parents=True, exist_ok=True)
            # the run last: cut off before, all is unpacked again
            members = sorted(packed.getmembers(), key=lambda member: member.name == RUN)
            packed.extractall(folder, members, filter="data")
            return
        file = packed.extractfile(RUN) if RUN in packed.getnames() else None
        if file is None or json.load(file) != known:
            raise OtherRunError(f"{archive} and {folder} hold different runs' results: name another file or folder")


def _run_of(folder: Path) -> dict[str, Any] | None:
    path = folder / RUN
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OtherRunError(f"{path} is damaged: {error}") from None


def _changed(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return ", ".join(f"{name} {before.get(name)} there, {now.get(name)} here" for name in names)
    return f"{before} there, {now} here"
