"""Similarity of representations across layers and models."""

from layerlens.deprecated import keep_old_names

keep_old_names(__name__)
