"""Analyzers: plain functions of a model and an input that return results."""

from .layer_table import layer_table
from .routes import compare_routes, route

__all__ = ["compare_routes", "layer_table", "route"]
