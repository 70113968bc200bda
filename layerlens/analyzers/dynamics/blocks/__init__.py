"""Blocks of residual networks: nonlinearity, redundancy and the logit lens."""
