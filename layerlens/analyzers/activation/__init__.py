"""Activations: what a layer returned, by itself or weighted by what it did for the score."""

from .attention import attention_rollout, attention_weights
from .grad_cam import grad_cam
from .maps import activation_maps

__all__ = ["activation_maps", "attention_rollout", "attention_weights", "grad_cam"]
