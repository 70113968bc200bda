"""Dynamics: what the layers of a model make of a data set, and what training makes of the layers."""

from .geometry import geometry
from .similarity import similarity
from .watch import Watch, watch

__all__ = ["Watch", "geometry", "similarity", "watch"]
