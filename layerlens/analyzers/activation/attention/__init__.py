"""Attention: weights by layer and head, and their rollout."""
