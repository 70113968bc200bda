"""Checks: whether the numbers that attribution relies on can be trusted for a model and an input."""

from .check import check
from .check_gradient import check_gradient

__all__ = ["check", "check_gradient"]
