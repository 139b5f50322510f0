"""A pytest plugin: which of PEFT's tests run, accelerated or plain, and what became of each.

Tests of other methods than LoRA, AdaLoRA and VeRA are left out where their parameters say so. Each test starts from the
same seed, so that one that depends on chance has the same one in both runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from .compare import NOT_IMPORTED, Outcome
from .counting import Counts, accelerate_everything

METHODS = (peft.LoraConfig, peft.AdaLoraConfig, peft.VeraConfig)
PROPERTY = "lorafam"
LONGEST_REASON = 300


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accelerate", action="store_true", help="accelerate every PEFT layer")
    parser.addoption("--only", type=Path, help="a JSON list of the tests to run, by name; default: all")
    parser.addoption("--outcomes", type=Path, help="where to write what became of each test, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Suite(config), "lorafam-peft-suite")


class Suite:
    """The state of one run, in the process that reports and in those that test."""

    def __init__(self, config: pytest.Config) -> None:
        self.output: Path | None = None if hasattr(config, "workerinput") else config.getoption("--outcomes")
        only: Path | None = config.getoption("--only")
        self.only = None if only is None else set(json.loads(only.read_text(encoding="utf-8")))
        self.tests: dict[str, Outcome] = {}
        self.counts = Counts()
        if config.getoption("--accelerate"):
            accelerate_everything(self.counts)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not of_another_method(item) and self.asked_for(item)]
        helpers = sys.modules.get("tests.testing_utils")
        if helpers is not None:
            # PEFT's tests ask the hub once for every model, with retries that last half a minute
            helpers._HUB_MODEL_ACCESSES = AllKnown()  # type: ignore[attr-defined]

    def asked_for(self, item: pytest.Item) -> bool:
        return self.only is None or item.nodeid in self.only

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self.counts.clear()
        torch.manual_seed(0)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        try:
            return (yield)
        finally:
            item.user_properties.append((PROPERTY, [self.counts.layers, self.counts.forwards]))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            lines = report.longreprtext.strip().splitlines()
            self.tests[report.nodeid] = Outcome(NOT_IMPORTED, reason="".join(lines[-1:])[:LONGEST_REASON])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed and report.when != "call":
            return
        known = self.tests.get(report.nodeid)
        if known is not None and known.result == "failed":
            return
        counts: Any = dict(report.user_properties).get(PROPERTY, (0, 0))
        self.tests[report.nodeid] = Outcome(report.outcome, counts[0], counts[1], reason_of(report))

    def pytest_sessionfinish(self) -> None:
        if self.output is not None:
            self.output.write_text(json.dumps(self.tests, indent=0), encoding="utf-8")


class AllKnown(dict[str, int]):
    """Models of the hub, each of which counts as fetched before: tests look for it in the cache alone."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> int:
        return 0


def of_another_method(item: Any) -> bool:
    """Whether a test is parametrised with a configuration of another method."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    kinds = {value if isinstance(value, type) else type(value) for value in values}
    return any(issubclass(kind, peft.PeftConfig) and kind not in METHODS for kind in kinds)


def reason_of(report: pytest.TestReport) -> str:
    """The last line of a failure, or why a test was skipped."""
    lines = report.longreprtext.strip().splitlines() if not report.passed else []
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message.strip().splitlines() or [""])[0][:LONGEST_REASON] if crash else "".join(lines[-1:])
