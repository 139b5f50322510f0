"""`make architectures`: tiny models of many architectures of transformers, adapted in four ways, every column checked
by its values; docs/architectures.md is written of it.
"""
