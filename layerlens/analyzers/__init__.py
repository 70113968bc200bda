"""Analyzers: plain functions of a model and an input that return results."""

from .layer_table import layer_table

__all__ = ["layer_table"]
