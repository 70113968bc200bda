"""Sensitivity: which layer responds to the input, which one the output depends on, and which weights."""

from .inputs import morris, sobol
from .interventions import ablate, patch
from .jacobian import jacobian
from .lipschitz import lipschitz
from .methods import methods, sensitivity
from .noise import noise_response
from .registry import MEASURES, QUESTIONS
from .robustness import attack_curve, attack_drift, corruption_curve
from .weights import weight_sensitivity

__all__ = [
    "MEASURES",
    "QUESTIONS",
    "ablate",
    "attack_curve",
    "attack_drift",
    "corruption_curve",
    "jacobian",
    "lipschitz",
    "methods",
    "morris",
    "noise_response",
    "patch",
    "sensitivity",
    "sobol",
    "weight_sensitivity",
]
