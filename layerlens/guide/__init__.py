"""Which questions can be asked of a model and an input."""

from .guide import guide

__all__ = ["guide"]
