"""Configurations worth measuring: those of the shipped rows, and what lies one step from one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..kernels.launch_config import LaunchConfig
from ..kernels.launch_table import Question, config_of, machine_of, rows


def shipped_configs(question: Question) -> list[LaunchConfig]:
    """Of every shipped row of the kernel for this kind of machine, dtype and way of reading W, at any size."""
    configs = []
    for row in rows(machine_of(question.architecture))[question.kernel]:
        if question.dtype in row.get("dtypes", [question.dtype]) and question.weight in row.get(
            "weights", [question.weight]
        ):
            configs.append(config_of(row, question.architecture))
    return list(dict.fromkeys(configs))


def neighbours(config: LaunchConfig) -> Iterator[LaunchConfig]:
    """Each block size halved and doubled, half and twice the warps, a stage more and less; what the machine can't take
    is found out by compiling it.
    """
    for name, size in config.blocks:
        for other in (size // 2, 2 * size):
            if other:
                yield replace(config, blocks=tuple(sorted({**dict(config.blocks), name: other}.items())))
    for warps in (config.num_warps // 2, 2 * config.num_warps):
        if warps:
            yield replace(config, num_warps=warps)
    for stages in (config.num_stages + 1, config.num_stages - 1):
        if stages:
            yield replace(config, num_stages=stages)


def as_dict(config: LaunchConfig) -> dict[str, Any]:
    """The configuration's part of a row."""
    return {"blocks": dict(config.blocks), "num_warps": config.num_warps, "num_stages": config.num_stages}
