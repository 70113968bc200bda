"""Layer-wise relevance propagation: rules as hooks on autograd's own graph, and a ledger of all relevance."""

from .centred import centred_relevance
from .concepts import Concept, concept_relevance, rank_concepts
from .propagate import relevance, relevance_by_target
from .rulebook import RULEBOOKS, Rulebook, as_rulebook
from .top_inputs import top_inputs

__all__ = [
    "RULEBOOKS",
    "Concept",
    "Rulebook",
    "as_rulebook",
    "centred_relevance",
    "concept_relevance",
    "rank_concepts",
    "relevance",
    "relevance_by_target",
    "top_inputs",
]
