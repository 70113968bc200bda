"""Recurrent layers over time."""

from .states import recurrent_states

__all__ = ["recurrent_states"]
