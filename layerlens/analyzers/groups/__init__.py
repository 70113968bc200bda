"""Groups of samples: how they differ inside a model, and how its errors differ from its right answers."""

from .compare_groups import compare_groups
from .explain_errors import explain_errors

__all__ = ["compare_groups", "explain_errors"]
