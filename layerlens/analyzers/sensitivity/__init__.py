"""Sensitivity: which layer responds to the input, and which layer the output depends on."""

from .jacobian import jacobian
from .methods import METHODS, sensitivity
from .noise import noise_response

__all__ = ["METHODS", "jacobian", "noise_response", "sensitivity"]
