"""Sensitivity: which layer responds to the input, which one the output depends on, and which weights."""

from layerlens.analyzers.common.measure_registry import MEASURES, QUESTIONS

from .inputs import morris, sobol
from .interventions import ablate, circuit_faithfulness, patch
from .local.jacobian import jacobian
from .local.lipschitz import lipschitz
from .local.noise_response import noise_response
from .robustness import attack, attack_curve, attack_drift, corruption_curve
from .sensitivity import methods, sensitivity
from .weights import weight_sensitivity

__all__ = [
    "MEASURES",
    "QUESTIONS",
    "ablate",
    "attack",
    "attack_curve",
    "attack_drift",
    "circuit_faithfulness",
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
