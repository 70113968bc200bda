"""The names of the package with their types; at run time they are loaded when they are first used."""

from . import (
    edits as edits,
    errors as errors,
    faithfulness as faithfulness,
    plotting as plotting,
    results as results,
)
from .analyzers.activation import (
    activation_maps as activation_maps,
    attention_rollout as attention_rollout,
    attention_weights as attention_weights,
    layer_maps as layer_maps,
    recurrent_states as recurrent_states,
)
from .analyzers.activation.cam.grad_cam import grad_cam as grad_cam
from .analyzers.activation.feature_visualization import feature_visualization as feature_visualization
from .analyzers.activation.latent_traversal import latent_traversal as latent_traversal
from .analyzers.activation.receptive_field import receptive_field as receptive_field
from .analyzers.concepts import (
    concept_relevance as concept_relevance,
    rank_concepts as rank_concepts,
    top_inputs as top_inputs,
)
from .analyzers.dynamics.compare import compare as compare
from .analyzers.dynamics.generalization_gap import generalization_gap as generalization_gap
from .analyzers.dynamics.geometry import geometry as geometry
from .analyzers.dynamics.health import health as health
from .analyzers.dynamics.linear_probe import linear_probe as linear_probe
from .analyzers.dynamics.logit_lens import logit_lens as logit_lens
from .analyzers.dynamics.nonlinearity import nonlinearity as nonlinearity
from .analyzers.dynamics.similarity import similarity as similarity
from .analyzers.dynamics.watch import watch as watch
from .analyzers.faithfulness import cascading_randomization as cascading_randomization
from .analyzers.faithfulness.evaluate import evaluate as evaluate
from .analyzers.groups.compare_groups import compare_groups as compare_groups
from .analyzers.groups.explain_errors import explain_errors as explain_errors
from .analyzers.layer_table import layer_table as layer_table
from .analyzers.relevance import (
    Rulebook as Rulebook,
    relevance as relevance,
    relevance_by_target as relevance_by_target,
)
from .analyzers.routes import (
    compare_routes as compare_routes,
    route as route,
)
from .analyzers.saliency import attention_rollout_map as attention_rollout_map, saliency as saliency
from .analyzers.sensitivity import (
    ablate as ablate,
    attack_curve as attack_curve,
    attack_drift as attack_drift,
    corruption_curve as corruption_curve,
    noise_response as noise_response,
    patch as patch,
    sensitivity as sensitivity,
)
from .analyzers.sensitivity.inputs.morris import morris as morris
from .analyzers.sensitivity.inputs.sobol import sobol as sobol
from .analyzers.sensitivity.jacobian import jacobian as jacobian
from .analyzers.sensitivity.lipschitz import lipschitz as lipschitz
from .analyzers.sensitivity.weights.weight_sensitivity import weight_sensitivity as weight_sensitivity
from .areas import area as area
from .borrow import borrowed as borrowed
from .call import Call as Call
from .capturing import (
    capture as capture,
    run as run,
)
from .contrasting import contrast as contrast
from .functions import (
    FunctionProbe as FunctionProbe,
    capture_functions as capture_functions,
)
from .language import continuation as continuation
from .layers import (
    Layers as Layers,
    select as select,
)
from .lens import Lens as Lens
from .neurons import (
    deep_dream as deep_dream,
    direction as direction,
    neuron as neuron,
)
from .probe import Probe as Probe
from .record import Record as Record
from .results import (
    ActivationMaps as ActivationMaps,
    AttentionWeights as AttentionWeights,
    Attribution as Attribution,
    Curve as Curve,
    ErrorExplanation as ErrorExplanation,
    FaithfulnessCurve as FaithfulnessCurve,
    FeatureVisualization as FeatureVisualization,
    GroupComparison as GroupComparison,
    GroupEffects as GroupEffects,
    LatentTraversal as LatentTraversal,
    LayerHealth as LayerHealth,
    LayerProfile as LayerProfile,
    LayerTable as LayerTable,
    Leaderboard as Leaderboard,
    Ledger as Ledger,
    LogitLens as LogitLens,
    Matrix as Matrix,
    MethodTable as MethodTable,
    Ranking as Ranking,
    ReceptiveField as ReceptiveField,
    RecurrentStates as RecurrentStates,
    Relevance as Relevance,
    Routes as Routes,
    TopInputs as TopInputs,
    TrainingHistory as TrainingHistory,
    UnitStatistics as UnitStatistics,
    load as load,
)
from .scale import Store as Store, open_store as open_store, over as over
from .softmaxed import probability as probability
from .target import (
    Target as Target,
    as_target as as_target,
)

__version__: str
__all__: list[str]
