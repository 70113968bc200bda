"""Inputs of a model, and batches of a data set."""

from layerlens.deprecated import keep_old_names

from .inputs import Inputs, as_inputs

__all__ = ["Inputs", "as_inputs"]

keep_old_names(__name__)
