"""Uncertainty: how an explanation varies over the models that the data leave plausible."""

from .model_uncertainty import model_uncertainty

__all__ = ["model_uncertainty"]
