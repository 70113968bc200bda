"""Sensitivity: which layer responds to the input, which one the output depends on, and which weights."""

from .inputs import morris, sobol
from .jacobian import jacobian
from .methods import methods, sensitivity
from .noise import noise_response
from .registry import MEASURES, QUESTIONS
from .weights import weight_sensitivity

__all__ = [
    "MEASURES",
    "QUESTIONS",
    "jacobian",
    "methods",
    "morris",
    "noise_response",
    "sensitivity",
    "sobol",
    "weight_sensitivity",
]
