"""Items one after another, each in a process of its own, until they are done or the time is up.

A process that aborts, or hangs in a case for longer than that may take, costs the case: it is named, and a new process
goes on with the next. What was cut off because the time was up, or because this process was killed, is done next time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .cases import ABORTED, BAD, HUNG, LEFT_OUT
from .plan import Item
from .store import Record
from .worker import LATER, LOST

POLL = 0.05
# a case that was begun this often and never ended takes the machine down
ATTEMPTS = 3
# processes that begin no case and end badly
FALSE_STARTS = 2
SIDE_BY_SIDE = 4
# what a worker writes at its end, and reads, gets this long
GRACE = 3.0
STARTING = 300.0


class Runner:
    """`say` is told what happens; `after_item` is called when an item's process has ended."""

    def __init__(self, folder: Path, deadline: float, say: Callable[[str], None], after_item: Callable[[], None]):
        self.folder, self.deadline, self.say, self.after_item = folder, deadline, say, after_item
        self.processes: set[int] = set()
        self.lock = threading.Lock()
        self.stopped = False

    def run(self, items: Sequence[Item]) -> bool:
        """Whether all of them are finished."""
        for batch in batches(items):
            todo = [item for item in batch if not self.record(item).finished]
            with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
                try:
                    list(pool.map(self.supervise, todo))
                except BaseException:
                    self.stop()
                    raise
            if any(not self.record(item).finished for item in batch):
                return False
        return True

    def record(self, item: Item) -> Record:
        return Record(self.folder / f"{item.name}.json")

    def supervise(self, item: Item) -> None:
        """Processes of one item until it is finished or the time is up."""
        if missing := item.missing():
            record = self.record(item)
            record.end(item.name, LEFT_OUT, why=f"not installed: {', '.join(missing)}")
            record.finish()
            self.say(f"{item.name}: left out, not installed: {', '.join(missing)}")
            return
        false_starts = 0
        start = time.time()
        while time.time() < self.deadline and not self.stopped:
            before = len(self.record(item).cases)
            code, cut, said = self.process(item)
            record = self.record(item)
            if record.running is not None and not (cut == LATER or self.stopped):
                self.blame(record, code, cut, said)
            if record.finished or code == LATER or cut == LATER or self.stopped:
                break
            if len(record.cases) > before or code == LOST:
                continue
            false_starts += 1
            if false_starts >= FALSE_STARTS:
                record.end("process", ABORTED, why=f"it began no case: {ending(code)}", said=said)
                record.finish()
                break
        with self.lock:
            self.tell(item, time.time() - start)
            self.after_item()

    def process(self, item: Item) -> tuple[int, Any, str]:
        """Runs a worker: its exit code, why it was killed (LATER, HUNG or None), and the end of what it wrote."""
        record = self.record(item)
        if record.running is not None and record.attempts >= ATTEMPTS:
            record.end(record.running, ABORTED, why=f"begun {record.attempts} times, and never ended")
        options = json.dumps(dict(item.options))
        module = f"{__package__}.worker"
        command = [sys.executable, "-m", module, item.module, options, str(self.folder), str(record.path)]
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            worker = subprocess.Popen(
                [*command, str(self.deadline - GRACE), str(os.getpid())],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            with self.lock:
                self.processes.add(worker.pid)
            cut = self.watch(worker, record.path)
            code = worker.wait()
            # what it started, a pool of compilers say, doesn't outlive it
            kill_group(worker.pid)
            with self.lock:
                self.processes.discard(worker.pid)
            output.seek(0)
            return code, cut, output.read()[-2000:]

    def watch(self, worker: subprocess.Popen[bytes], path: Path) -> Any:
        """Waits; kills it where its case takes too long (HUNG) or the time is up (LATER)."""
        seen: tuple[Any, float] = (None, time.time())
        limit = STARTING
        while worker.poll() is None:
            time.sleep(POLL)
            state = Record(path)
            now = time.time()
            at = (state.running, len(state.cases))
            if at != seen[0]:
                seen, limit = (at, now), STARTING if state.running is None else state.limit
            if now - seen[1] > limit:
                kill_group(worker.pid)
                return HUNG
            if now > self.deadline:
                kill_group(worker.pid)
                return LATER
        return None

    def blame(self, record: Record, code: int, cut: Any, said: str) -> None:
        """The case that was running when its process ended."""
        assert record.running is not None
        if cut == HUNG:
            record.end(record.running, HUNG, why=f"not done after {record.limit:.0f} s")
        else:
            record.end(record.running, ABORTED, why=f"its process {ending(code)}", said=said)

    def stop(self) -> None:
        self.stopped = True
        with self.lock:
            for pid in self.processes:
                kill_group(pid)

    def tell(self, item: Item, seconds: float) -> None:
        record = self.record(item)
        counts: dict[str, int] = {}
        for case in record.cases.values():
            counts[case["outcome"]] = counts.get(case["outcome"], 0) + 1
        shown = ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or (
            "nothing for a GPU" if record.finished else "nothing yet"
        )
        state = "" if record.finished else "; goes on next time"
        self.say(f"{item.name}: {shown} ({seconds:.0f} s){state}")
        for name, case in record.cases.items():
            if case["outcome"] in BAD:
                self.say(f"    {case['outcome'].upper()} {name}: {case.get('why', '')}")


def batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Items that run side by side, in order."""
    together: list[Item] = []
    for item in items:
        if item.alone or (together and together[-1].part != item.part):
            if together:
                yield together
            together = []
        if item.alone:
            yield [item]
        else:
            together.append(item)
    if together:
        yield together


def ending(code: int) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
