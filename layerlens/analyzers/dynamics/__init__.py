"""Dynamics: what the layers of a model make of a data set, and what training makes of the layers."""

from .compare import compare
from .generalization_gap import generalization_gap
from .geometry import geometry
from .linear_probe import linear_probe
from .similarity import similarity
from .watch import watch
from .watching import Watch

__all__ = ["Watch", "compare", "generalization_gap", "geometry", "linear_probe", "similarity", "watch"]
