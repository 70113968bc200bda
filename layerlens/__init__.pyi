"""The names of the package with their types; at run time they are loaded when they are first used."""

from . import (
    edits as edits,
    errors as errors,
    extend as extend,
    faithfulness as faithfulness,
    plotting as plotting,
    results as results,
    rules as rules,
)
from .analyzers.activation.activation_maps import activation_maps as activation_maps, layer_maps as layer_maps
from .analyzers.activation.attention.rollout import attention_rollout as attention_rollout
from .analyzers.activation.attention.weights import attention as attention
from .analyzers.activation.feature_visualization.feature_visualization import (
    feature_visualization as feature_visualization,
)
from .analyzers.activation.latent_traversal import latent_traversal as latent_traversal
from .analyzers.activation.receptive_field import receptive_field as receptive_field
from .analyzers.activation.recurrent.states import recurrent_states as recurrent_states
from .analyzers.checks.check import check as check
from .analyzers.checks.check_gradient import check_gradient as check_gradient
from .analyzers.common.features.basis import Basis as Basis
from .analyzers.concepts.basis import basis as basis
from .analyzers.concepts.concept_activation import concept_activation as concept_activation
from .analyzers.concepts.concept_relevance import concept_relevance as concept_relevance, rank_concepts as rank_concepts
from .analyzers.concepts.feature_effects import feature_effects as feature_effects
from .analyzers.concepts.sparse_autoencoder import SparseAutoencoder as SparseAutoencoder
from .analyzers.concepts.tcav import tcav as tcav
from .analyzers.concepts.top_inputs import top_inputs as top_inputs
from .analyzers.dynamics.blocks.logit_lens import logit_lens as logit_lens
from .analyzers.dynamics.blocks.nonlinearity import nonlinearity as nonlinearity
from .analyzers.dynamics.geometry.geometry import geometry as geometry
from .analyzers.dynamics.geometry.health import health as health
from .analyzers.dynamics.readouts.compare import compare as compare
from .analyzers.dynamics.readouts.generalization_gap import generalization_gap as generalization_gap
from .analyzers.dynamics.readouts.linear_probe import linear_probe as linear_probe
from .analyzers.dynamics.similarity.similarity import similarity as similarity
from .analyzers.dynamics.training.watch import watch as watch
from .analyzers.faithfulness.evaluate import evaluate as evaluate
from .analyzers.faithfulness.randomization import cascading_randomization as cascading_randomization
from .analyzers.generation.explain_answer import explain_answer as explain_answer
from .analyzers.generation.explain_sampling import explain_sampling as explain_sampling
from .analyzers.generation.generate import generate as generate
from .analyzers.generation.steer import steer as steer
from .analyzers.groups.compare_groups import compare_groups as compare_groups
from .analyzers.groups.explain_errors import explain_errors as explain_errors
from .analyzers.influence.influence import influence as influence
from .analyzers.relevance.circuits.attribution_graph import attribution_graph as attribution_graph
from .analyzers.relevance.circuits.contributions import contributions as contributions
from .analyzers.relevance.relevance import relevance as relevance, relevance_by_target as relevance_by_target
from .analyzers.relevance.rules.rulebook import Rulebook as Rulebook
from .analyzers.saliency.by_target import saliency_by_target as saliency_by_target
from .analyzers.saliency.cam.gradient_cams import grad_cam as grad_cam
from .analyzers.saliency.cam.rollout_map import attention_rollout_map as attention_rollout_map
from .analyzers.saliency.mean_rank import mean_rank as mean_rank
from .analyzers.saliency.perturbation.interactions import interactions as interactions
from .analyzers.saliency.saliency import saliency as saliency
from .analyzers.sensitivity.inputs.morris import morris as morris
from .analyzers.sensitivity.inputs.sobol import sobol as sobol
from .analyzers.sensitivity.interventions.ablate import ablate as ablate
from .analyzers.sensitivity.interventions.circuit_faithfulness import circuit_faithfulness as circuit_faithfulness
from .analyzers.sensitivity.interventions.patch import patch as patch
from .analyzers.sensitivity.local.jacobian import jacobian as jacobian
from .analyzers.sensitivity.local.lipschitz import lipschitz as lipschitz
from .analyzers.sensitivity.local.noise_response import noise_response as noise_response
from .analyzers.sensitivity.robustness.attack import attack as attack
from .analyzers.sensitivity.robustness.attack_curve import attack_curve as attack_curve
from .analyzers.sensitivity.robustness.attack_drift import attack_drift as attack_drift
from .analyzers.sensitivity.robustness.corruption_curve import corruption_curve as corruption_curve
from .analyzers.sensitivity.sensitivity import sensitivity as sensitivity
from .analyzers.sensitivity.weights.weight_sensitivity import weight_sensitivity as weight_sensitivity
from .analyzers.structure.layer_table import layers as layers
from .analyzers.structure.routes import compare_routes as compare_routes, route as route
from .analyzers.uncertainty.model_uncertainty import model_uncertainty as model_uncertainty
from .axes.followed import name_axes as name_axes
from .inputs.batches import Data as Data
from .lens import Lens as Lens
from .model.borrowed import borrowed as borrowed
from .model.layers import Layers as Layers, input_of as input_of, select as select
from .probes.call import Call as Call
from .probes.function_probe import FunctionProbe as FunctionProbe, functions as functions
from .probes.probe import Probe as Probe
from .probes.record import Record as Record
from .probes.run import capture as capture, run as run
from .results.base import load as load
from .results.maps.activation_maps import ActivationMaps as ActivationMaps
from .results.maps.adversarial_examples import AdversarialExamples as AdversarialExamples
from .results.maps.attention_weights import AttentionWeights as AttentionWeights
from .results.maps.attribution import Attribution as Attribution
from .results.maps.ensemble_attribution import EnsembleAttribution as EnsembleAttribution
from .results.maps.feature_visualization import FeatureVisualization as FeatureVisualization
from .results.maps.latent_traversal import LatentTraversal as LatentTraversal
from .results.maps.receptive_field import ReceptiveField as ReceptiveField
from .results.maps.recurrent_states import RecurrentStates as RecurrentStates
from .results.maps.relevance import Relevance as Relevance
from .results.maps.sampling_attribution import SamplingAttribution as SamplingAttribution
from .results.maps.top_inputs import TopInputs as TopInputs
from .results.reports.checks import Finding as Finding, ModelChecks as ModelChecks
from .results.reports.generation import Generation as Generation
from .results.reports.group_comparison import (
    ErrorExplanation as ErrorExplanation,
    GroupComparison as GroupComparison,
    GroupEffects as GroupEffects,
)
from .results.reports.guide import Guide as Guide
from .results.reports.layer_table import LayerTable as LayerTable
from .results.reports.leaderboard import Leaderboard as Leaderboard
from .results.reports.logit_lens import LogitLens as LogitLens
from .results.reports.method_table import MethodTable as MethodTable
from .results.reports.routes import Routes as Routes
from .results.reports.steering import Steering as Steering
from .results.values.answer_attribution import AnswerAttribution as AnswerAttribution
from .results.values.attribution_graph import AttributionGraph as AttributionGraph
from .results.values.contributions import Contributions as Contributions
from .results.values.curve import Curve as Curve
from .results.values.faithfulness_curve import FaithfulnessCurve as FaithfulnessCurve
from .results.values.influence import Influence as Influence
from .results.values.layer_health import LayerHealth as LayerHealth
from .results.values.layer_profile import LayerProfile as LayerProfile
from .results.values.ledger import Ledger as Ledger
from .results.values.matrix import Matrix as Matrix
from .results.values.ranking import Ranking as Ranking
from .results.values.training_history import TrainingHistory as TrainingHistory
from .results.values.unit_statistics import UnitStatistics as UnitStatistics
from .scale.over import over as over
from .scale.store.store import Store as Store, open_store as open_store
from .targets.base import Target as Target
from .targets.contrast import contrast as contrast
from .targets.detections import box as box, instance as instance
from .targets.probability import probability as probability
from .targets.regions import area as area
from .targets.target import as_target as as_target
from .targets.tokens import continuation as continuation
from .targets.transcripts import symbol as symbol, transcript as transcript
from .targets.units import deep_dream as deep_dream, direction as direction, neuron as neuron

__version__: str
__all__: list[str]
