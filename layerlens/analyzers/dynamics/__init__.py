"""Dynamics: what the layers of a model make of a data set."""

from .geometry import geometry
from .health import health
from .nonlinearity import nonlinearity
from .similarity import similarity

__all__ = ["geometry", "health", "nonlinearity", "similarity"]
