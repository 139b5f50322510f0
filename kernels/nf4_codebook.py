"""The sixteen levels of the 4-bit formats, in code order, once for the whole project.

NF4: quantiles of the normal distribution, normalised to [-1, 1] (QLoRA, arXiv 2305.14314, appendix E).
FP4: one sign bit (bit 3), two exponent bits, one mantissa bit, normalised by its largest value 12 (bitsandbytes).
Values are exact decimal forms of the float32 levels that bitsandbytes stores.
"""

NF4_LEVELS: tuple[float, ...] = (
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
)

_FP4_MAGNITUDES: tuple[float, ...] = (
    0.0,
    0.0052083334885537624,
    0.6666666865348816,
    1.0,
    0.3333333432674408,
    0.5,
    0.1666666716337204,
    0.25,
)
FP4_LEVELS: tuple[float, ...] = _FP4_MAGNITUDES + tuple(-level if level else 0.0 for level in _FP4_MAGNITUDES)
