"""Which weights the output depends on: curvature of the loss, pruning and rounding of one layer at a time."""

from .weight_sensitivity import weight_sensitivity

__all__ = ["weight_sensitivity"]
