"""The structure of a model: its table of layers and the routes of its samples."""

from .layer_table import layers
from .routes import compare_routes, route

__all__ = ["compare_routes", "layers", "route"]
