"""What NVIDIA publishes of the cards that times are modelled for."""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """`clock` in Hz, `bandwidth` in bytes a second, `tensor_flops` a second: bf16 products summed in fp32, not sparse.

    The clock is the one at which the published peak of the tensor cores is reached.
    """

    name: str
    architecture: str
    multiprocessors: int
    clock: float
    bandwidth: float
    tensor_flops: float


CARDS = (
    # A100 80GB SXM: data sheet of June 2021; multiprocessors and clock: A100 architecture white paper
    Card("A100 80GB", "sm_80", 108, 1.410e9, 2039e9, 312e12),
    # H100 SXM5: H100 architecture white paper, 1.830 GHz for tensor cores
    Card("H100", "sm_90", 132, 1.830e9, 3352e9, 989.4e12),
    # H200 SXM: data sheet; H100's chip
    Card("H200", "sm_90", 132, 1.830e9, 4800e9, 989.4e12),
    # B200 in HGX at 1000 W: data sheet of Blackwell; 148 multiprocessors as CUDA reports them, the clock follows from
    # the peak and 8192 operations a clock of a multiprocessor
    Card("B200", "sm_100", 148, 1.856e9, 8000e9, 2250e12),
    # RTX 4090: Ada architecture white paper
    Card("RTX 4090", "sm_89", 128, 2.520e9, 1008e9, 165.2e12),
    # RTX 5090: RTX Blackwell architecture white paper
    Card("RTX 5090", "sm_120", 170, 2.407e9, 1792e9, 209.5e12),
)
