"""Sensitivity: which layer responds to the input, which one the output depends on, and which weights."""

from .jacobian import jacobian
from .methods import methods, sensitivity
from .noise import noise_response
from .registry import MEASURES, QUESTIONS

__all__ = ["MEASURES", "QUESTIONS", "jacobian", "methods", "noise_response", "sensitivity"]
