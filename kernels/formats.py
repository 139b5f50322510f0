"""The formats of quantised weights, a row each: what everything else reads.

    w = level[code] · scale of its block

NF4: quantiles of the normal distribution, normalised to [-1, 1] (QLoRA, arXiv 2305.14314, appendix E).
FP4: one sign bit (bit 3), two exponent bits, one mantissa bit, normalised by its largest value 12 (bitsandbytes).
Levels are exact decimal forms of the float32 ones that bitsandbytes stores.

A gain is what levels are multiplied by before they are rounded to a narrow dtype for the tensor cores:
round(gain · level) / gain, the division made in the scale. NF4's levels rounded as they are err the same way
everywhere, so a product with inputs that aren't zero-mean (after a ReLU) is several times worse than eager's, whose
rounded weights err either way. With these gains the mean error over normally distributed weights in blocks of 64
vanishes, and its RMS is below that of rounded weights. FP4's levels are multiples of 1/192, so 0.75 makes all of them
exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Format(NamedTuple):
    """A row.

    bits              of a code
    levels            by code; none for codes that are numbers of `code_dtype` themselves
    gains             "bf16", "fp16" → gain; 1 where none is given
    blocks            (n, k), the shapes of weights that share a scale; n 0: along the flattened
                      weight, whatever its rows
    scale_dtype       of block scales; second_scale: what they are scaled or quantised with again, or None
    zero_point        whether a block has one, subtracted from its codes
    """

    name: str
    bits: int
    levels: tuple[float, ...]
    blocks: tuple[tuple[int, int], ...]
    code_dtype: str | None = None
    scale_dtype: str = "fp32"
    second_scale: str | None = None
    gains: Mapping[str, float] = {}
    zero_point: bool = False

    def gain(self, dtype: str) -> float:
        """Of levels that are rounded to "bf16" or "fp16"."""
        return self.gains.get(dtype, 1.0)


# multiples of a byte's two codes, up to bitsandbytes' largest
_ALONG = tuple((0, 2**power) for power in range(5, 13))
_FP4_MAGNITUDES = (
    0.0,
    0.0052083334885537624,
    0.6666666865348816,
    1.0,
    0.3333333432674408,
    0.5,
    0.1666666716337204,
    0.25,
)

NF4 = Format(
    "nf4",
    bits=4,
    levels=(
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
    blocks=_ALONG,
    second_scale="dynamic8",
    gains={"bf16": 1.188755, "fp16": 1.388595},
)
FP4 = Format(
    "fp4",
    bits=4,
    levels=_FP4_MAGNITUDES + tuple(-level if level else 0.0 for level in _FP4_MAGNITUDES),
    blocks=_ALONG,
    second_scale="dynamic8",
    gains={"bf16": 0.75, "fp16": 0.75},
)

# what a layout's number of a type means
FORMATS: tuple[Format, ...] = (NF4, FP4)
QUANT_TYPES = tuple(one.name for one in FORMATS)
BLOCK_SIZES = tuple(k for _, k in _ALONG)


def format_of(quant_type: str) -> Format:
    """The row of a name. Raises ValueError for an unknown one."""
    if quant_type not in QUANT_TYPES:
        raise ValueError(f"quant_type: expected one of {QUANT_TYPES}, got {quant_type!r}")
    return FORMATS[QUANT_TYPES.index(quant_type)]
