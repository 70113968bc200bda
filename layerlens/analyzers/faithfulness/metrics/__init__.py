"""Metrics of faithfulness."""

from layerlens.deprecated import keep_old_names

keep_old_names(__name__)
