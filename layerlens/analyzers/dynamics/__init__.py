"""Dynamics: what the layers of a model make of a data set."""

from .geometry import geometry
from .health import health
from .logit_lens import logit_lens
from .nonlinearity import nonlinearity
from .similarity import similarity

__all__ = ["geometry", "health", "logit_lens", "nonlinearity", "similarity"]
