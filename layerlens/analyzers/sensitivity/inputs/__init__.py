"""Which features of the input a score depends on, over a whole distribution of inputs and not at one of them."""

from .morris import morris
from .sobol import sobol

__all__ = ["morris", "sobol"]
