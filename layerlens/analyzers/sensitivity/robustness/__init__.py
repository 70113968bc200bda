"""Robustness: what attacks and corruptions of the input do to the output and to every layer."""

from .attack import attack
from .attack_curve import attack_curve
from .attack_drift import attack_drift
from .corruption_curve import corruption_curve

__all__ = ["attack", "attack_curve", "attack_drift", "corruption_curve"]
