"""The one tolerance of all tests: `lorafam.reference.ratio_rule`."""

from lorafam.reference.ratio_rule import MIN_ELEMENTS, assert_as_good_as_eager, unit_roundoff

__all__ = ["MIN_ELEMENTS", "assert_as_good_as_eager", "unit_roundoff"]
