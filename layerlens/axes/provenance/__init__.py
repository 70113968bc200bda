"""Where the entries of every axis come from: axes followed through a forward pass, operation by operation."""

from . import choices, pointwise, products, sequences, shapes, windows

__all__ = ["choices", "pointwise", "products", "sequences", "shapes", "windows"]
