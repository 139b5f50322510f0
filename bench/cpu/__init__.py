"""Ratios on a CPU: lorafam beside everything a CPU user has."""
