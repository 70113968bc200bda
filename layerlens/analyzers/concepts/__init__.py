"""Concepts: units of a layer by relevance, and the inputs that drive them."""

from .concept_relevance import Concept, concept_relevance, rank_concepts
from .tcav import tcav
from .top_inputs import top_inputs

__all__ = ["Concept", "concept_relevance", "rank_concepts", "tcav", "top_inputs"]
