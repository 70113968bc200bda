"""Geometry of representations: dimensions, norms, dead and duplicate units."""

from layerlens.deprecated import keep_old_names

from .geometry import geometry

__all__ = ["geometry"]

keep_old_names(__name__)
