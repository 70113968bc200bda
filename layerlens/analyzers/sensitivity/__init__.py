"""Sensitivity: which layer responds to the input, which one the output depends on, and which weights."""

from .jacobian import jacobian
from .lipschitz import lipschitz
from .methods import methods, sensitivity
from .noise import noise_response
from .registry import MEASURES, QUESTIONS
from .robustness import attack_curve, attack_drift, corruption_curve

__all__ = [
    "MEASURES",
    "QUESTIONS",
    "attack_curve",
    "attack_drift",
    "corruption_curve",
    "jacobian",
    "lipschitz",
    "methods",
    "noise_response",
    "sensitivity",
]
