"""Groups of samples: what sets them apart inside of a model, and what sets its errors apart from its hits."""

from .compare_groups import compare_groups
from .explain_errors import explain_errors

__all__ = ["compare_groups", "explain_errors"]
