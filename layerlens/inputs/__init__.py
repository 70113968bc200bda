"""Inputs of a model, and batches of a data set."""

from .inputs import Inputs, as_inputs

__all__ = ["Inputs", "as_inputs"]
