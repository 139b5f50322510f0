"""The fastest right configuration at one point: from the shipped ones uphill, a step at a time.

A configuration is checked as the self-check checks an op before it is timed; the winner also on an odd shape with every
optional operand. It wins only if it is faster than the shipped one by MARGIN, side by side.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ..backends import eager
from ..backends.comparison import Expected, expected
from ..backends.told import told
from ..kernels.launch_config import LaunchConfig
from ..kernels.launch_table import Question, config_of, launch_config, observed, prefer
from ..kernels.paths import prefer_paths
from .candidates import as_dict, neighbours, shipped_configs
from .check import BROKEN, WRONG, failure
from .gpu import Gpu
from .workload import Workload

MARGIN = 0.03
# a step uphill is one by more than the noise of a short measurement
STEP = 0.01
SEARCH_REPEATS, VERDICT_REPEATS = 7, 41


class NotLaunchedError(RuntimeError):
    """The op doesn't come to its kernel; the message says why."""


@dataclass
class Outcome:
    """`question` holds the sizes up to which the result applies; `shipped` is None where the shipped configuration
    isn't right here (`failure` says why), `best` where none is. `finished` is false where the time was up before the
    search was at its end.
    """

    question: Question
    shipped: LaunchConfig | None = None
    failure: str = ""
    best: LaunchConfig | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    measured: int = 0
    wrong: int = 0
    broken: int = 0
    finished: bool = False


def search(
    work: Workload, gpu: Gpu, *, deadline: float, start: LaunchConfig | None = None, avoid: Collection[Any] = ()
) -> Outcome:
    """`start` is measured first, what is in `avoid` (as `as_dict`) never. Leaves the shipped table in effect.

    Raises GpuLostError where the GPU doesn't survive a configuration, NotLaunchedError where the op doesn't come to its
    kernel.
    """
    prefer(gpu.architecture, {})
    prefer_paths(gpu.architecture, work.paths)
    try:
        return _Search(work, gpu, deadline, avoid).run(start)
    finally:
        prefer(gpu.architecture, {})
        prefer_paths(gpu.architecture, {})


class _Search:
    def __init__(self, work: Workload, gpu: Gpu, deadline: float, avoid: Collection[Any]) -> None:
        self.work, self.gpu, self.deadline, self.avoid = work, gpu, deadline, avoid
        op, reference = getattr(gpu.ops, work.op), getattr(eager, work.op)
        self.call = functools.partial(op, *work.arguments)
        self.expected = expected(work.op, reference, work.arguments)
        self.odd_expected = expected(work.op, reference, work.odd)
        self.seen: set[LaunchConfig] = set()
        self.seconds: dict[LaunchConfig, float] = {}
        question, self.shipped = self.asked()
        self.outcome = Outcome(question)

    def asked(self) -> tuple[Question, LaunchConfig]:
        """What the op asks the table about its kernel, at the largest of its sizes, and the shipped answer."""
        why = f"{self.work.op} doesn't launch it"
        with observed() as questions:
            try:
                self.call()
            except Exception as error:  # where the question was asked it is told when the configuration is checked
                why = told(error)
        asked = [question for question in questions if question.kernel == self.work.kernel]
        if not asked:
            raise NotLaunchedError(f"{self.work.kernel}: {why}")
        sizes = {size: max(getattr(one, size) for one in asked) for size in ("tokens", "N", "K", "rank")}
        question = asked[0]._replace(**sizes)
        kernel, architecture, dtype, tokens, weight, *_ = question
        sizes.pop("tokens")
        return question, launch_config(kernel, architecture, dtype, tokens, weight, **sizes)

    def run(self, start: LaunchConfig | None) -> Outcome:
        outcome, best, centre = self.outcome, None, None
        fresh = [self.shipped, *([start] if start else []), *shipped_configs(outcome.question)]
        while True:
            best, in_time = self.round(best, fresh)
            if best is None or best == centre or not in_time:
                break
            centre, fresh = best, list(neighbours(best))
        outcome.finished = in_time
        outcome.measured = len(self.seconds)
        self.verdict()
        return outcome

    def round(self, best: LaunchConfig | None, fresh: list[LaunchConfig]) -> tuple[LaunchConfig | None, bool]:
        """The best of all so far, and whether all of `fresh` was measured in time."""
        right, in_time = [], True
        for config in fresh:
            if config in self.seen or as_dict(config) in self.avoid:
                continue
            # the shipped one is measured in any case
            if self.seen and self.gpu.clock() >= self.deadline:
                in_time = False
                break
            self.seen.add(config)
            failure = self.failure(config, self.work.arguments, self.expected)
            if not failure:
                right.append(config)
            elif config == self.shipped:
                self.outcome.failure = failure
        if right:
            entrants = [*([best] if best else []), *right]
            found = dict(zip(entrants, self.timed(entrants, SEARCH_REPEATS), strict=True))
            self.seconds.update(found)
            fastest = min(found, key=lambda config: found[config])
            if best is None or found[fastest] < (1 - STEP) * found[best]:
                best = fastest
        return best, in_time

    def verdict(self) -> None:
        """Fills in shipped and best, from the fastest that is right at the odd shape too."""
        outcome = self.outcome
        if self.shipped in self.seconds:
            outcome.shipped = outcome.best = self.shipped
        for config in sorted(self.seconds, key=lambda config: self.seconds[config]):
            if config == self.shipped:
                break
            if self.failure(config, self.work.odd, self.odd_expected):
                continue
            if outcome.shipped is None:
                outcome.best = config
                outcome.seconds = {"best": self.timed([config], VERDICT_REPEATS)[0]}
                return
            shipped, ours = self.timed([self.shipped, config], VERDICT_REPEATS)
            outcome.seconds = {"shipped": shipped, "best": ours}
            if ours < (1 - MARGIN) * shipped:
                outcome.best = config
            else:
                outcome.seconds["best"] = shipped
            return
        if outcome.shipped is not None:
            outcome.seconds = dict.fromkeys(("shipped", "best"), self.seconds[self.shipped])

    def timed(self, configs: list[LaunchConfig], repeats: int) -> list[float]:
        return self.gpu.timer(self.call, [functools.partial(self.choose, config) for config in configs], repeats)

    def choose(self, config: LaunchConfig) -> None:
        row = as_dict(config)
        if config_of(row, self.gpu.architecture) != config:
            raise ValueError(f"{config}: not for {self.gpu.architecture}")
        prefer(self.gpu.architecture, {self.work.kernel: [row]})

    def failure(self, config: LaunchConfig, arguments: tuple[Any, ...], wanted: Expected) -> str:
        """Why a configuration is not right, empty where it is."""
        self.choose(config)
        how, why = failure(self.gpu, self.work.op, arguments, wanted, as_dict(config))
        self.outcome.broken += how == BROKEN
        self.outcome.wrong += how == WRONG
        return why
