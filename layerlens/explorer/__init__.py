"""The explorer: one HTML file in which a reader looks around in a model with mouse or keyboard."""

from .assemble import explore
from .content import Explorer

__all__ = ["Explorer", "explore"]
