"""Layer-wise relevance propagation: rules as hooks on autograd's own graph, and a ledger of all relevance."""

from layerlens.deprecated import keep_old_names

from .centered_relevance import centered_relevance
from .circuits import attribution_graph, contributions
from .relevance import relevance, relevance_by_target
from .rules.rulebook import RULEBOOKS, Rulebook, as_rulebook

__all__ = [
    "RULEBOOKS",
    "Rulebook",
    "as_rulebook",
    "attribution_graph",
    "centered_relevance",
    "contributions",
    "relevance",
    "relevance_by_target",
]

keep_old_names(__name__, {"centred_relevance": "centered_relevance"})
