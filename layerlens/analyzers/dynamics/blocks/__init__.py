"""Blocks of residual networks: nonlinearity, redundancy and the logit lens."""

from layerlens.deprecated import keep_old_names

keep_old_names(__name__)
