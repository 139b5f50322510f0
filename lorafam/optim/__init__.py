"""Optimisers, LoRA+, and the allocation of AdaLoRA's ranks."""
