"""The rows of the page's tables: a kernel, how it reads W, its tile of tokens where that is chosen by their number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lorafam.backends.triton_gpu.weight import how_read

from .formulas import FORMULAS


class Variant(NamedTuple):
    """`read`: dense, packed, elements, or "" for a kernel without W; `tokens`: of its tile, 0 where all share one."""

    kernel: str
    read: str
    tokens: int

    def __str__(self) -> str:
        text = f"`{self.kernel}`"
        text += {"": "", "dense": ", dense W"}.get(self.read, f", 4-bit W, {self.read}")
        return text + (f", tiles of {self.tokens} tokens" if self.tokens else "")


# whose tile of tokens the launch table chooses by their number
_BY_TOKENS = ("lora_linear", "lora_linear_group", "lora_linear_grad", "dense_linear")


def variant_of(kernel: str, config: Mapping[str, Any]) -> Variant:
    """Of a kernel's function ("..._kernel") and its configuration (`every_kernel.configuration`)."""
    name = kernel.removesuffix("_kernel")
    packed = config.get("PACKED", False) or config.get("ONE_BLOCK", False)
    read = how_read({**config, "PACKED": packed}) if "BLOCK_SIZE" in config and "BLOCK_N" in config else ""
    return Variant(name, read, config.get("BLOCK_M", 0) if name in _BY_TOKENS else 0)


def in_order(variants: Iterable[Variant]) -> list[Variant]:
    """As the page has them."""
    order = list(FORMULAS)
    return sorted(variants, key=lambda variant: (order.index(variant.kernel), *variant[1:]))
