"""Dynamics: how layers transform a data set, and how training changes the layers."""

from .blocks.logit_lens import logit_lens
from .blocks.nonlinearity import nonlinearity
from .geometry.geometry import geometry
from .geometry.health import health
from .readouts.compare import compare
from .readouts.generalization_gap import generalization_gap
from .readouts.linear_probe import linear_probe
from .similarity.similarity import similarity
from .training.watch import Watch, watch

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
