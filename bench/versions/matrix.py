"""The combinations of versions that are tried, as data: both ends of every range that pyproject.toml states."""

from __future__ import annotations

from typing import NamedTuple

COLUMNS = ("compiled", "launched", "simulated", "tests")
PACKAGES = ("torch", "triton", "transformers", "peft", "numba", "bitsandbytes", "accelerate", "numpy")


class Row(NamedTuple):
    """Packages by version, and what is run with them; for the rest, why it isn't.

    `beside`: the packages lie in front of those of the Python that runs, else they get an environment of their own.
    """

    name: str
    packages: dict[str, str]
    runs: tuple[str, ...]
    left_out: str
    beside: bool = False


_KERNELS = ("compiled", "launched", "simulated")
_BESIDE = "only Triton differs from the row of the newest, and torch 2.13 doesn't bring this one"


def _triton(version: str) -> Row:
    return Row(f"triton-{version}", {"triton": version}, _KERNELS, _BESIDE, beside=True)


ROWS = (
    *map(_triton, ("3.6.0", "3.7.1", "3.8.0", "3.9.0")),
    Row(
        "oldest",
        {
            "torch": "2.10.0",
            "transformers": "5.1.0",
            "peft": "0.21.0",
            "numba": "0.61.0",
            "bitsandbytes": "0.50.0",
            "accelerate": "1.10.1",
        },
        ("tests",),
        "its Triton is the row triton-3.6.0's",
    ),
    Row(
        "torch-2.11",
        # the interpreter of its Triton doesn't run with numpy 2.4
        {"torch": "2.11.0", "transformers": "5.17.0", "peft": "0.21.2", "numpy": "2.3.5"},
        ("tests",),
        "its Triton is the row triton-3.6.0's",
    ),
    Row(
        "newest",
        {"torch": "2.14.1", "transformers": "5.24.0", "peft": "0.21.2", "numba": "0.68.1", "bitsandbytes": "0.50.2"},
        ("tests",),
        "its Triton is the row triton-3.8.0's",
    ),
)
# what .ci/run runs beside `make test simulated compiled`, which run the newest Triton, for this architecture
FAST = ("triton-3.6.0",)
FAST_ARCHITECTURES = "sm_90"
