"""Layer-wise relevance propagation: rules as hooks on autograd's own graph, and a ledger of all relevance."""

from .propagate import relevance
from .rulebook import RULEBOOKS, Rulebook, as_rulebook

__all__ = ["RULEBOOKS", "Rulebook", "as_rulebook", "relevance"]
