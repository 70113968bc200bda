"""Interventions: parts of a run replaced, to see what the output makes of it."""

from .ablate import ablate
from .circuit_faithfulness import circuit_faithfulness
from .patch import patch

__all__ = ["ablate", "circuit_faithfulness", "patch"]
