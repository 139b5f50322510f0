"""Every kernel has a configuration wherever it may run, and each row of the table is well-formed and can be reached."""

from __future__ import annotations

import itertools

import pytest
from lorafam.kernels.launch_config import INTERPRETER
from lorafam.kernels.launch_table import AMD, DENSE, ELEMENTS, NVIDIA, PACKED, launch_config, machine_of, rows

ARCHITECTURES = {
    NVIDIA: ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"),
    AMD: ("gfx942", "gfx950"),
    INTERPRETER: ("interpreter",),
}
KEYS = {"tokens", "dtypes", "weights", "architectures", "blocks", "num_warps", "num_stages"}
each_target = pytest.mark.parametrize("target", ARCHITECTURES)


@each_target
def test_every_row_is_reached_and_nothing_is_left_out(target: str) -> None:
    assert {machine_of(architecture) for architecture in ARCHITECTURES[target]} == {target}
    for kernel, entries in rows(target).items():
        found = {
            launch_config(kernel, architecture, dtype, tokens, weight)
            for architecture, dtype, tokens, weight in itertools.product(
                ARCHITECTURES[target],
                ("bfloat16", "float16", "float32"),
                (0, 8, 9, 16, 17, 64, 65, 5000),
                (DENSE, PACKED, ELEMENTS, None),
            )
            # what is packed is multiplied in 16 bits
            if not (weight == PACKED and dtype == "float32")
        }
        described = {(config.blocks, config.num_warps, config.num_stages) for config in found}
        for entry in entries:
            assert entry.keys() <= KEYS, kernel
            blocks = tuple(sorted(entry["blocks"].items()))
            assert (blocks, entry["num_warps"], entry["num_stages"]) in described, (kernel, entry)
            assert all(size & (size - 1) == 0 for size in entry["blocks"].values())


@each_target
def test_same_kernels_everywhere(target: str) -> None:
    assert rows(target).keys() == rows(NVIDIA).keys()


def test_no_row_is_told() -> None:
    with pytest.raises(LookupError, match="no configuration of lora_linear for sm_90, int8, 300 tokens, dense weight"):
        launch_config("lora_linear", "sm_90", "int8", 300, DENSE)
