"""Influence: the training samples that made a prediction what it is."""

from .influence import influence

__all__ = ["influence"]
