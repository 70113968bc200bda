"""Similarity of representations across layers and models."""

from layerlens.deprecated import keep_old_names

from .similarity import similarity

__all__ = ["similarity"]

keep_old_names(__name__)
