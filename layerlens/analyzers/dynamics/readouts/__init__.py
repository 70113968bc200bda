"""Readouts: what a linear model can decode from each layer."""
