"""Multipliers of differences: two runs of a model compared operation by operation."""
