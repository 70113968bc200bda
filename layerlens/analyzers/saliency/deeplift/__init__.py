"""DeepLIFT: the difference of a score from that of a baseline, explained operation by operation."""

from .deep_lift import deep_lift

__all__ = ["deep_lift"]
