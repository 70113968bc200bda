"""Sensitivity: which layer responds to the input, which one the output depends on, and which weights."""

from .interventions import ablate, patch
from .jacobian import jacobian
from .methods import methods, sensitivity
from .noise import noise_response
from .registry import MEASURES, QUESTIONS

__all__ = ["MEASURES", "QUESTIONS", "ablate", "jacobian", "methods", "noise_response", "patch", "sensitivity"]
