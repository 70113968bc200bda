"""Dynamics: what the layers of a model make of a data set."""

from .similarity import similarity

__all__ = ["similarity"]
