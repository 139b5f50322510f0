"""Every shipped configuration of every kernel is executed as compiled code, by the check that a new GPU goes through:
right results for every op, nothing out of bounds, no race, no uninitialised read, no unwritten output.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from lorafam.backends import eager, self_check, triton_gpu
from tests.architectures import chosen
from tests.conftest import INTERPRETING, ON_GPU
from tests.kernels.sources import defined_kernels

pytestmark = pytest.mark.skipif(INTERPRETING, reason="of compiled code only")

# ptxsim doesn't run Blackwell's tensor cores (tcgen05, sm_100): its launches are checked where they are compiled
SIMULATED = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# the operand whose dtype the launch table goes by, where there is a choice
WIDE = ("x_ptr", "grad_y_ptr", "w_ptr")


def reachable(entries: list[dict[str, Any]], architecture: str) -> list[dict[str, Any]]:
    """A kernel's rows of the launch table that no earlier row of this architecture stands in front of."""
    found: list[dict[str, Any]] = []
    for entry in entries:
        if architecture in entry.get("architectures", [architecture]) and not any(covers(row, entry) for row in found):
            found.append(entry)
    return found


def covers(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether `row` takes everything that `other` takes."""
    tokens = row.get("tokens", math.inf) >= other.get("tokens", math.inf)
    return tokens and all(
        key not in row or (key in other and set(other[key]) <= set(row[key])) for key in ("dtypes", "weights")
    )


@pytest.mark.simulated
@pytest.mark.parametrize("kernels", [*chosen(SIMULATED), *["cuda"] * ON_GPU], indirect=True)
def test_every_configuration_passes_the_check_of_a_new_gpu(kernels: str) -> None:
    if kernels == "cuda":
        assert self_check.run_checks(triton_gpu, eager, torch.device("cuda")) == {}
        return
    from lorafam.kernels.launch_table import NVIDIA, PACKED, rows

    from lorafam.backends.triton_gpu.launch import recorded
    from lorafam.backends.triton_gpu.weight import how_read
    from lorafam.inspect.every_kernel import configuration

    def read(config: dict[str, Any]) -> str:
        return PACKED if config.get("ONE_BLOCK") else how_read(config)

    with recorded() as launches:
        assert self_check.run_checks(triton_gpu, eager, torch.device("cpu"), least=1) == {}
    run = []
    for launch in launches:
        signature = launch.kernel.src.signature
        dtype = next((NAMES.get(signature[name].lstrip("*")) for name in WIDE if name in signature), None)
        run.append((launch.name.removesuffix("_kernel"), configuration(launch.kernel), dtype))
        assert not launch.result.warnings, (launch.name, launch.result.warnings)
    missing = []
    for kernel, entries in rows(NVIDIA).items():
        for entry in reachable(entries, kernels):
            wanted = {**entry["blocks"], "num_warps": entry["num_warps"], "num_stages": entry["num_stages"]}
            ran = {
                (dtype, read(config) if "weights" in entry else None)
                for name, config, dtype in run
                if name == kernel and wanted.items() <= config.items()
            }
            needed = set(itertools.product(entry.get("dtypes", []), entry.get("weights", [None])))
            if not ran or not needed <= ran:
                missing.append((kernel, wanted, needed - ran))
    assert missing == []


def test_the_check_covers_whatever_the_kernels_folder_has() -> None:
    from lorafam.kernels.launch_table import NVIDIA, rows

    # a group is configured as one product
    defined = {name.removesuffix("_kernel") for name in defined_kernels()} - {"lora_linear_group"}
    assert defined == set(rows(NVIDIA))
