"""Dynamics: what the layers of a model make of a data set, and what training makes of the layers."""

from .compare import compare
from .generalization_gap import generalization_gap
from .geometry import geometry
from .health import health
from .linear_probe import linear_probe
from .logit_lens import logit_lens
from .nonlinearity import nonlinearity
from .similarity import similarity
from .watch import watch
from .watching import Watch

__all__ = [
    "Watch",
    "compare",
    "generalization_gap",
    "geometry",
    "health",
    "linear_probe",
    "logit_lens",
    "nonlinearity",
    "similarity",
    "watch",
]
