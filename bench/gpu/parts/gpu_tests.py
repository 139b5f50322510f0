"""The tests of one file that need the GPU, under pytest, each a case."""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lorafam.backends.told import told

from ..cases import ABORTED, FAILED, LEFT_OUT, PASSED, Case, Context
from ..device import device
from ..plan import OPTIONAL
from ..store import Record
from ..worker import LOST

# what the parameters of such tests say
ON_GPU = ("triton", "cuda", "triton_gpu on cuda")
# how the parameters are called that say where a test runs
WHERE = ("kernels", "backend")
MISSING = re.compile(r"No module named '(\w+)")
LIMIT, EXPECTS = 180.0, 5.0
COLLECTION = "collection"


def cases(context: Context, file: str) -> Iterator[Case]:
    """Runs pytest, which writes its cases down itself; one more case where that came to no good end."""
    watcher = Watcher(context)
    arguments = [file, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", "-m", "not compiled"]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = pytest.main(arguments, plugins=[watcher])
    missing = MISSING.findall(said.getvalue())
    if watcher.lost:
        # what is left is for a new process, at once
        raise SystemExit(LOST)
    if watcher.cut:
        # what is left is for the next process
        yield Case("the rest", dict, expects=float("inf"))
    elif code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        if missing and missing[-1] in OPTIONAL:
            # of a conftest
            context.record.end(COLLECTION, LEFT_OUT, why=f"not installed: {missing[-1]}")
        elif COLLECTION not in context.record.cases:
            print(said.getvalue())
            context.record.end(COLLECTION, ABORTED, why=f"pytest ended with code {int(code)}")


class Watcher:
    """pytest's plugin: chooses, writes down, stops in time."""

    def __init__(self, context: Context) -> None:
        self.record: Record = context.record
        self.deadline = context.deadline
        self.cut = self.lost = False
        self.found: dict[str, Any] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Any:
        """A file that imports what isn't installed is left out, by name."""
        outcome = yield
        report = outcome.get_result()
        reason = missing_package(report)
        # importorskip of a whole file skips it
        if reason and report.outcome != "passed":
            self.record.end(COLLECTION, LEFT_OUT, why=reason)
            report.outcome, report.result = "passed", []
        elif report.outcome == "failed":
            text = str(report.longrepr)
            self.record.end(COLLECTION, FAILED, why=text.strip().splitlines()[-1] if text.strip() else "failed")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if needs_gpu(item)]
        items[:] = [item for item in chosen if case_name(item.nodeid) not in self.record.cases]

    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        self.cut = time.time() + EXPECTS > self.deadline
        if self.cut or self.lost:
            item.session.shouldstop = "the GPU no longer answers" if self.lost else "the time is up"
            return True
        return None

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.found = {"outcome": PASSED, "start": time.perf_counter()}
        self.record.begin(case_name(nodeid), LIMIT)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            reason = missing_package(report)
            self.found |= {"outcome": LEFT_OUT if reason else FAILED, "why": reason or first_line(report)}
        elif report.skipped and self.found["outcome"] == PASSED:
            self.found |= {"outcome": LEFT_OUT, "why": missing_package(report) or skip_reason(report)}

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        seconds = round(time.perf_counter() - self.found.pop("start"), 3)
        outcome = self.found.pop("outcome")
        if outcome == FAILED:
            try:
                device().synchronize()
            except Exception as error:
                self.lost, self.found["lost"] = True, told(error)
        self.record.end(case_name(nodeid), outcome, **self.found, seconds=seconds)


def needs_gpu(item: pytest.Item) -> bool:
    """Marked so, or by the parameter that says where it runs; by any where it has none of that name."""
    if item.get_closest_marker("gpu") is not None:
        return True
    callspec = getattr(item, "callspec", None)
    values = callspec.params if callspec else {}
    where = [values[name] for name in WHERE if name in values] or values.values()
    return any(isinstance(value, str) and value in ON_GPU for value in where)


def case_name(nodeid: str) -> str:
    """Without the file, which names the item."""
    return nodeid.partition("::")[2]


def missing_package(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    found = MISSING.findall(str(report.longrepr))
    return f"not installed: {found[-1]}" if found and found[-1] in OPTIONAL else None


def first_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = str(crash.message if crash else report.longrepr).strip().splitlines()
    return lines[0][:300] if lines else "failed"


def skip_reason(report: pytest.TestReport) -> str:
    longrepr = report.longrepr
    return str(longrepr[2] if isinstance(longrepr, tuple) else longrepr)
