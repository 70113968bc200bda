"""Results are data: values with their meaning, what the method can prove about itself, ways to show and keep them."""

from .attention import AttentionWeights
from .attribution import ActivationMaps, Attribution, Relevance
from .base import Result, load
from .layer_table import LayerRow, LayerTable
from .layers import LayerProfile
from .ledger import Entry, Ledger
from .routes import RouteComparison, Routes
from .top_inputs import TopInputs

__all__ = [
    "ActivationMaps",
    "AttentionWeights",
    "Attribution",
    "Entry",
    "LayerProfile",
    "LayerRow",
    "LayerTable",
    "Ledger",
    "Relevance",
    "Result",
    "RouteComparison",
    "Routes",
    "TopInputs",
    "load",
]
