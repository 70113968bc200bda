"""Where the entries of every axis come from: axes followed through a forward pass, operation by operation."""

from . import pointwise, products, sequences, shapes, windows

__all__ = ["pointwise", "products", "sequences", "shapes", "windows"]
