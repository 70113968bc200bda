"""Tasks whose truth is known by construction, to test methods on."""

from .additive import additive_model
from .objects import masked_objects
from .shapley import known_shapley
from .task import Task
from .watermark import planted_watermark

__all__ = ["Task", "additive_model", "known_shapley", "masked_objects", "planted_watermark"]
