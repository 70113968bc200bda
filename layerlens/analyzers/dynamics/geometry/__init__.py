"""Geometry of representations: dimensions, norms, dead and duplicate units."""

from layerlens.deprecated import keep_old_names

keep_old_names(__name__)
