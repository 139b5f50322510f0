"""Models of other libraries, made faster in place."""

from .accelerate import accelerate, accelerated, decelerate
from .report import AccelerateReport, Row

__all__ = ["AccelerateReport", "Row", "accelerate", "accelerated", "decelerate"]
