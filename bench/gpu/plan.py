"""Every item of `make gpu`, in the order of their worth: what a first half-hour must show comes first."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

PARTS = ("check", "tests", "bench", "tune", "profile", "step")
# packages that tests and peers ask for, and that a machine may lack
OPTIONAL = (
    "bitsandbytes", "peft", "transformers", "accelerate", "trl", "gguf", "hqq", "torchao", "hypothesis", "numba",
    "pytest", "pytest_benchmark", "typer", "rich", "matplotlib", "psutil", "yaml", "datasets", "unsloth", "axolotl",
    "lorafusion",
)  # fmt: skip
# by how much of the kernels' work they stand for
CHECKED_OPS = (
    "lora_linear", "lora_linear_grad", "lora_project", "lora_factors_grad", "lora_linear_group", "dequantize_4bit",
    "quantize_4bit", "quantize_absmax", "row_norm", "squared_row_norm", "dropout", "adalora_importance",
    "adalora_scores", "adalora_penalty", "adalora_penalty_grad", "linear_cross_entropy",
)  # fmt: skip
# without those that decide a path, which have no configuration of their own
CONFIGURED = (
    "lora_linear", "lora_linear_grad", "lora_project", "lora_factors_grad", "lora_grad_pass", "nf4_dequantize",
    "dense_linear", "row_norm",
)  # fmt: skip
# other projects' kernels: their package, and the methods that they have
OTHERS = {
    "unsloth": ("unsloth", ("lora", "qlora")),
    "axolotl": ("axolotl", ("lora", "qlora", "qdora")),
    "lorafusion": ("lorafusion", ("lora",)),
}
METHODS = ("qlora", "qdora", "lora", "adalora")
SHAPES = ((4096, 4096), (14336, 4096))
# Qwen3-8B: k and v, gate and up, down
QWEN3 = ((1024, 4096), (12288, 4096), (4096, 12288))
TOKENS, MORE_TOKENS = (1, 2048, 128), (16, 64, 512, 8192)
TUNED_TOKENS = (1, 16, 128, 2048)


class Item(NamedTuple):
    """`module`, of `parts`, has its cases. `needs`: packages without which it is left out. Items next to each other
    that aren't `alone` run side by side.
    """

    name: str
    module: str
    options: Mapping[str, Any] = MappingProxyType({})
    needs: tuple[str, ...] = ()
    alone: bool = True

    @property
    def part(self) -> str:
        return self.name.partition("/")[0]

    def missing(self) -> list[str]:
        return [package for package in self.needs if importlib.util.find_spec(package) is None]


def items(part: str, test_files: tuple[str, ...]) -> list[Item]:
    """Those of a part, or of all parts in order ("next"), each once."""
    everything = [*_check(), *_tests(test_files), *_bench("untuned"), *_tune(), *_profile(), *_step(), *_bench("tuned")]
    return [item for item in everything if part == "next" or item.part == part]


def _check() -> Iterator[Item]:
    yield Item("check/machine", "machine")
    yield Item("check/compile", "compile_ahead")
    yield Item("check/self-check", "self_check")
    for op in CHECKED_OPS:
        yield Item(f"check/op-{op}", "op", {"op": op}, alone=False)
    yield Item("check/switched-off", "switched_off")
    for kernel in CONFIGURED:
        yield Item(f"check/configurations-{kernel}", "configurations", {"kernel": kernel}, alone=False)
    yield Item("check/splits", "splits")
    for tool in ("memcheck", "racecheck"):
        yield Item(f"check/sanitizer-{tool}", "sanitizer", {"tool": tool})


def _tests(files: tuple[str, ...]) -> Iterator[Item]:
    for file in files:
        name = file.removeprefix("tests/").removesuffix(".py").replace("/", ".")
        yield Item(f"tests/{name}", "gpu_tests", {"file": file}, needs=("pytest",), alone=False)


def _bench(table: str) -> Iterator[Item]:
    if table == "untuned":
        yield Item("bench/peaks", "peaks")
    for tokens in (TOKENS, MORE_TOKENS):
        for shapes in (SHAPES, QWEN3):
            for method in METHODS:
                for shape in shapes:
                    yield _layer(table, method, shape, tokens)
            if table == "untuned" and tokens == TOKENS and shapes == SHAPES:
                for shape in SHAPES:
                    options = {"method": "qlora", "shape": shape, "tokens": tokens, "table": table}
                    name = f"bench/compiled-peft-{shape[0]}x{shape[1]}"
                    yield Item(name, "layers", {**options, "contenders": ["compiled"]}, needs=("peft", "bitsandbytes"))
                for other, (package, methods) in OTHERS.items():
                    for method in methods:
                        yield _layer(table, method, SHAPES[0], tokens, other, needs=(package,))


def _layer(
    table: str,
    method: str,
    shape: tuple[int, int],
    tokens: tuple[int, ...],
    other: str = "",
    needs: tuple[str, ...] = (),
) -> Item:
    about = f"{other or table}-{method}-{shape[0]}x{shape[1]}-{'first' if tokens == TOKENS else 'more'}"
    options: dict[str, Any] = {"method": method, "shape": shape, "tokens": tokens, "table": table}
    # each in a process of its own: some change other libraries when they are imported
    return Item(f"bench/{about}", "layers", {**options, **({"contenders": [other]} if other else {})}, needs)


def _tune() -> Iterator[Item]:
    for shape in SHAPES:
        for tokens in TUNED_TOKENS:
            name = f"tune/{shape[0]}x{shape[1]}-{tokens}"
            yield Item(name, "tuning", {"shape": shape, "tokens": tokens}, needs=("triton",))


def _profile() -> Iterator[Item]:
    yield Item("profile/kernels", "counters")


def _step() -> Iterator[Item]:
    yield Item("step/qlora", "step", needs=("transformers",))
