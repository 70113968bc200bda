"""Inputs made to excite a unit, a direction, a layer or a class."""

from .feature_visualization import feature_visualization

__all__ = ["feature_visualization"]
