"""Geometry of representations: dimensions, norms, dead and duplicate units."""
