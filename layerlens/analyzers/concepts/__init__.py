"""Concepts: units of a layer by relevance, and the inputs that drive them."""

from layerlens.analyzers.common.features.basis import Basis

from .basis import basis
from .concept_activation import concept_activation
from .concept_relevance import Concept, concept_relevance, rank_concepts
from .feature_effects import feature_effects
from .sparse_autoencoder import SparseAutoencoder
from .tcav import tcav
from .top_inputs import top_inputs

__all__ = [
    "Basis",
    "Concept",
    "SparseAutoencoder",
    "basis",
    "concept_activation",
    "concept_relevance",
    "feature_effects",
    "rank_concepts",
    "tcav",
    "top_inputs",
]
