"""Interventions: parts of a run replaced, to see what the output makes of it."""

from .ablate import ablate
from .patch import patch

__all__ = ["ablate", "patch"]
