"""Results are data: values with their meaning, what the method can prove about itself, ways to show and keep them."""

from .attention import AttentionWeights
from .attribution import ActivationMaps, Attribution, Relevance
from .base import Result, load
from .curve import Curve
from .explained import Explained
from .faithfulness import FaithfulnessCurve
from .feature_visualization import FeatureVisualization
from .groups import ErrorExplanation, GroupComparison, GroupEffects
from .health import LayerHealth
from .layer_table import LayerRow, LayerTable
from .layers import LayerProfile
from .leaderboard import Leaderboard
from .ledger import Entry, Ledger
from .logit_lens import LogitLens
from .matrix import Matrix
from .method_table import MethodTable
from .ranking import Ranking
from .receptive_field import ReceptiveField
from .recurrent import RecurrentStates
from .routes import RouteComparison, Routes
from .top_inputs import TopInputs
from .training import TrainingHistory
from .traversal import LatentTraversal
from .unit_statistics import UnitStatistics

__all__ = [
    "ActivationMaps",
    "AttentionWeights",
    "Attribution",
    "Curve",
    "Entry",
    "ErrorExplanation",
    "Explained",
    "FaithfulnessCurve",
    "FeatureVisualization",
    "GroupComparison",
    "GroupEffects",
    "LatentTraversal",
    "LayerHealth",
    "LayerProfile",
    "LayerRow",
    "LayerTable",
    "Leaderboard",
    "Ledger",
    "LogitLens",
    "Matrix",
    "MethodTable",
    "Ranking",
    "ReceptiveField",
    "RecurrentStates",
    "Relevance",
    "Result",
    "RouteComparison",
    "Routes",
    "TopInputs",
    "TrainingHistory",
    "UnitStatistics",
    "load",
]
