"""Results are data: values with their meaning, what the method can prove about itself, ways to show and keep them."""

from .base import Result, load
from .maps.activation_maps import ActivationMaps
from .maps.adversarial_examples import AdversarialExamples
from .maps.attention_weights import AttentionWeights
from .maps.attribution import Attribution
from .maps.ensemble_attribution import EnsembleAttribution
from .maps.feature_visualization import FeatureVisualization
from .maps.latent_traversal import LatentTraversal
from .maps.receptive_field import ReceptiveField
from .maps.recurrent_states import RecurrentStates
from .maps.relevance import Relevance
from .maps.sampling_attribution import SamplingAttribution
from .maps.table_values import importance
from .maps.top_inputs import TopInputs
from .reports.checks import Finding, GradientCheck, LayerGradient, ModelChecks
from .reports.generation import Generation
from .reports.group_comparison import ErrorExplanation, GroupComparison, GroupEffects
from .reports.guide import Guide, GuideRow
from .reports.layer_table import LayerRow, LayerTable
from .reports.leaderboard import Leaderboard
from .reports.logit_lens import LogitLens
from .reports.method_table import MethodTable
from .reports.routes import RouteComparison, Routes
from .reports.steering import Steering
from .values.answer_attribution import AnswerAttribution
from .values.attribution_graph import AttributionGraph
from .values.contributions import Contributions
from .values.curve import Curve
from .values.explained import Explained
from .values.faithfulness_curve import FaithfulnessCurve
from .values.influence import Influence
from .values.layer_health import LayerHealth
from .values.layer_profile import LayerProfile
from .values.ledger import Entry, Ledger
from .values.matrix import Matrix
from .values.ranking import Ranking
from .values.training_history import TrainingHistory
from .values.unit_statistics import UnitStatistics

__all__ = [
    "AdversarialExamples",
    "ActivationMaps",
    "AnswerAttribution",
    "AttentionWeights",
    "Attribution",
    "AttributionGraph",
    "Contributions",
    "Curve",
    "EnsembleAttribution",
    "Entry",
    "ErrorExplanation",
    "Explained",
    "FaithfulnessCurve",
    "FeatureVisualization",
    "Generation",
    "Finding",
    "GradientCheck",
    "GroupComparison",
    "GroupEffects",
    "Guide",
    "GuideRow",
    "Influence",
    "LatentTraversal",
    "LayerGradient",
    "LayerHealth",
    "LayerProfile",
    "LayerRow",
    "LayerTable",
    "Leaderboard",
    "Ledger",
    "LogitLens",
    "Matrix",
    "MethodTable",
    "ModelChecks",
    "Ranking",
    "ReceptiveField",
    "RecurrentStates",
    "Relevance",
    "Result",
    "RouteComparison",
    "Routes",
    "SamplingAttribution",
    "Steering",
    "TopInputs",
    "TrainingHistory",
    "UnitStatistics",
    "importance",
    "load",
]
