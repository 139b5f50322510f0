"""Every kernel has a configuration wherever it may run, and each row of the table is well-formed and can be reached."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from lorafam.kernels import launch_table
from lorafam.kernels.launch_config import INTERPRETER
from lorafam.kernels.launch_table import (
    AMD,
    DENSE,
    ELEMENTS,
    NVIDIA,
    PACKED,
    Question,
    launch_config,
    machine_of,
    observed,
    prefer,
    preferred,
    rows,
)

ARCHITECTURES = {
    NVIDIA: ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"),
    AMD: ("gfx942", "gfx950"),
    INTERPRETER: ("interpreter",),
}
KEYS = {"tokens", "N", "K", "rank", "dtypes", "weights", "architectures", "blocks", "num_warps", "num_stages"}
NORM_BLOCKS = {"BLOCK_N": 16, "BLOCK_K": 16, "BLOCK_R": 16}
# those that differ in the rows that hold under them
TRITONS = ((3, 6), (3, 7), (3, 8))
each_target = pytest.mark.parametrize("target", ARCHITECTURES)


@contextlib.contextmanager
def under(version: tuple[int, int]) -> Iterator[None]:
    """The table as another Triton has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_table, "TRITON", version)
        forget()
        yield
    forget()


def forget() -> None:
    rows.cache_clear()
    launch_config.cache_clear()


@each_target
def test_every_row_is_reached_and_nothing_is_left_out(target: str) -> None:
    """Under the one or the other Triton: a row of some stands before that of the others."""
    assert {machine_of(architecture) for architecture in ARCHITECTURES[target]} == {target}
    reached, entries = set(), []
    for version in TRITONS:
        with under(version):
            for kernel, of_kernel in rows(target).items():
                entries += [(kernel, entry) for entry in of_kernel]
                found = (
                    launch_config(kernel, architecture, dtype, tokens, weight)
                    for architecture, dtype, tokens, weight in itertools.product(
                        ARCHITECTURES[target],
                        ("bfloat16", "float16", "float32"),
                        (0, 8, 9, 16, 17, 64, 65, 5000),
                        (DENSE, PACKED, ELEMENTS, None),
                    )
                    # what is packed is multiplied in 16 bits
                    if not (weight == PACKED and dtype == "float32")
                )
                reached |= {(kernel, config.blocks, config.num_warps, config.num_stages) for config in found}
    for kernel, entry in entries:
        assert entry.keys() <= KEYS, kernel
        blocks = tuple(sorted(entry["blocks"].items()))
        assert (kernel, blocks, entry["num_warps"], entry["num_stages"]) in reached, (kernel, entry)
        assert all(size & (size - 1) == 0 for size in entry["blocks"].values())


@each_target
def test_same_kernels_everywhere(target: str) -> None:
    assert rows(target).keys() == rows(NVIDIA).keys()


@pytest.mark.parametrize(("version", "tile"), [((3, 7), 16), ((3, 8), 8)])
def test_a_tile_of_eight_tokens_where_wgmma_is_made_of_it(version: tuple[int, int], tile: int) -> None:
    with under(version):
        assert launch_config("lora_linear", "sm_90", "bfloat16", 8, PACKED)["BLOCK_M"] == tile


def test_no_row_is_told() -> None:
    with pytest.raises(LookupError, match="no configuration of lora_linear for sm_90, int8, 300 tokens, dense weight"):
        launch_config("lora_linear", "sm_90", "int8", 300, DENSE)


@pytest.fixture
def _no_rows_of_ones_own() -> Iterator[None]:
    yield
    prefer("sm_90", {})


def norm_row(**conditions: Any) -> dict[str, Any]:
    return {**conditions, "blocks": NORM_BLOCKS, "num_warps": 1, "num_stages": 1}


@pytest.mark.usefixtures("_no_rows_of_ones_own")
@pytest.mark.parametrize(
    ("conditions", "taken"),
    [
        ({}, True),
        ({"N": 4096, "K": 1024, "rank": 16}, True),
        ({"N": 4095}, False),
        ({"K": 1023}, False),
        ({"rank": 15}, False),
        ({"tokens": 1}, True),
        ({"dtypes": ["float16"]}, False),
        ({"weights": ["packed"]}, False),
        ({"architectures": ["sm_80"]}, False),
    ],
)
def test_a_row_of_ones_own_goes_first_where_it_fits(conditions: dict[str, Any], taken: bool) -> None:
    def ask() -> tuple[Any, ...]:
        return launch_config("row_norm", "sm_90", "float32", 0, ELEMENTS, N=4096, K=1024, rank=16)

    shipped = ask()
    prefer("sm_90", {"row_norm": [norm_row(**conditions)]})
    assert (ask() != shipped) is taken
    assert ask().blocks == (tuple(sorted(NORM_BLOCKS.items())) if taken else shipped.blocks)
    assert launch_config("row_norm", "sm_80", "float32", 0, ELEMENTS).num_warps != 1
    prefer("sm_90", {})
    assert ask() == shipped


@pytest.mark.usefixtures("_no_rows_of_ones_own")
def test_a_malformed_row_changes_nothing() -> None:
    good = {"row_norm": [norm_row()]}
    prefer("sm_90", good)
    with pytest.raises(ValueError, match=r"row_norm, row 1: N: expected a whole number of at least 1, got -1"):
        prefer("sm_90", {"row_norm": [norm_row(N=-1)]})
    assert preferred("sm_90") == good
    assert launch_config("row_norm", "sm_90", "float32", N=4).num_warps == 1


def test_questions_are_observed_once() -> None:
    launch_config("dropout", "sm_90", "float16")
    with observed() as questions:
        for _ in range(2):
            launch_config("dropout", "sm_90", "float16")
            launch_config("row_norm", "sm_90", "float32", 0, ELEMENTS, N=5, K=6, rank=7)
    launch_config("dropout", "sm_80", "float16")
    assert questions == [
        Question("dropout", "sm_90", "float16", 0, None, 0, 0, 0),
        Question("row_norm", "sm_90", "float32", 0, ELEMENTS, 5, 6, 7),
    ]


@pytest.mark.usefixtures("_no_rows_of_ones_own")
def test_the_shipped_rows_decide_where_a_row_says_so() -> None:
    shipped = launch_config("row_norm", "sm_90", "float32", N=64)
    prefer("sm_90", {"row_norm": [{"N": 64, "shipped": True}, norm_row(N=128)]})
    assert launch_config("row_norm", "sm_90", "float32", N=64) == shipped
    assert launch_config("row_norm", "sm_90", "float32", N=65).num_warps == 1
