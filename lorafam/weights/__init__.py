"""Weights stored in 4 bits, as plain data: quantise, decode, share with bitsandbytes."""

from .nf4_weight import NF4Weight, quantize_nf4

__all__ = ["NF4Weight", "quantize_nf4"]
