"""Attention: weights by layer and head, and their rollout."""

from layerlens.deprecated import keep_old_names

keep_old_names(__name__)
