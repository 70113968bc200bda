"""Look inside any PyTorch model: what each layer holds, what mattered in the input, and how the score flows.

    from layerlens import Lens
    lens = Lens(model, class_names=names)
    lens.relevance(x, target="Egyptian cat").plot()

Start with `Lens`. Every analyzer is also a plain function of a model: `layerlens.saliency(model, x, target=...)`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module: nothing is imported before it is used, so that `import layerlens` costs next to nothing
_HOMES = {
    # the lens, and what it is made of
    "Lens": "lens",
    "Probe": "probe",
    "capture": "capturing",
    "run": "capturing",
    "capture_functions": "functions",
    "FunctionProbe": "functions",
    "Record": "record",
    "Call": "call",
    "Layers": "layers",
    "select": "layers",
    "Target": "target",
    "as_target": "target",
    "contrast": "contrasting",
    "neuron": "neurons",
    "direction": "neurons",
    "deep_dream": "neurons",
    "area": "areas",
    "continuation": "language",
    "borrowed": "borrow",
    # analyzers
    "layer_table": "analyzers",
    "route": "analyzers",
    "compare_routes": "analyzers",
    "activation_maps": "analyzers.activation",
    "attention_weights": "analyzers.activation",
    "attention_rollout": "analyzers.activation",
    "attention_rollout_map": "analyzers.activation",
    "grad_cam": "analyzers.activation",
    "feature_visualization": "analyzers.activation",
    "recurrent_states": "analyzers.activation",
    "latent_traversal": "analyzers.activation",
    "layer_maps": "analyzers.activation",
    "receptive_field": "analyzers.activation",
    "saliency": "analyzers.saliency",
    "sensitivity": "analyzers.sensitivity",
    "jacobian": "analyzers.sensitivity",
    "noise_response": "analyzers.sensitivity",
    "relevance": "analyzers.relevance",
    "relevance_by_target": "analyzers.relevance",
    "Rulebook": "analyzers.relevance",
    "rank_concepts": "analyzers.relevance",
    "concept_relevance": "analyzers.relevance",
    "top_inputs": "analyzers.relevance",
    "evaluate": "analyzers.faithfulness",
    "cascading_randomization": "analyzers.faithfulness",
    "compare_groups": "analyzers.groups",
    "explain_errors": "analyzers.groups",
    "probability": "softmaxed",
    # results
    "ActivationMaps": "results",
    "AttentionWeights": "results",
    "Attribution": "results",
    "Curve": "results",
    "ErrorExplanation": "results",
    "FaithfulnessCurve": "results",
    "FeatureVisualization": "results",
    "GroupComparison": "results",
    "GroupEffects": "results",
    "LatentTraversal": "results",
    "LayerProfile": "results",
    "LayerTable": "results",
    "Leaderboard": "results",
    "Matrix": "results",
    "MethodTable": "results",
    "Ranking": "results",
    "Ledger": "results",
    "ReceptiveField": "results",
    "RecurrentStates": "results",
    "Relevance": "results",
    "Routes": "results",
    "TopInputs": "results",
    "load": "results",
    # modules
    "edits": "",
    "errors": "",
    "faithfulness": "",
    "plotting": "",
    "results": "",
}

if TYPE_CHECKING:
    from . import edits, errors, faithfulness, plotting, results
    from .analyzers.activation import (
        activation_maps,
        attention_rollout,
        attention_rollout_map,
        attention_weights,
        layer_maps,
        recurrent_states,
    )
    from .analyzers.activation.cam.grad_cam import grad_cam
    from .analyzers.activation.feature_visualization import feature_visualization
    from .analyzers.activation.latent_traversal import latent_traversal
    from .analyzers.activation.receptive_field import receptive_field
    from .analyzers.faithfulness import cascading_randomization
    from .analyzers.faithfulness.evaluate import evaluate
    from .analyzers.groups.compare_groups import compare_groups
    from .analyzers.groups.explain_errors import explain_errors
    from .analyzers.layer_table import layer_table
    from .analyzers.relevance import Rulebook, concept_relevance, rank_concepts, relevance, relevance_by_target
    from .analyzers.relevance.top_inputs import top_inputs
    from .analyzers.routes import compare_routes, route
    from .analyzers.saliency import saliency
    from .analyzers.sensitivity import noise_response, sensitivity
    from .analyzers.sensitivity.jacobian import jacobian
    from .areas import area
    from .borrow import borrowed
    from .call import Call
    from .capturing import capture, run
    from .contrasting import contrast
    from .functions import FunctionProbe, capture_functions
    from .language import continuation
    from .layers import Layers, select
    from .lens import Lens
    from .neurons import deep_dream, direction, neuron
    from .probe import Probe
    from .record import Record
    from .results import (
        ActivationMaps,
        AttentionWeights,
        Attribution,
        Curve,
        ErrorExplanation,
        FaithfulnessCurve,
        FeatureVisualization,
        GroupComparison,
        GroupEffects,
        LatentTraversal,
        LayerProfile,
        LayerTable,
        Leaderboard,
        Ledger,
        Matrix,
        MethodTable,
        Ranking,
        ReceptiveField,
        RecurrentStates,
        Relevance,
        Routes,
        TopInputs,
        load,
    )
    from .softmaxed import probability
    from .target import Target, as_target

__all__ = [
    "ActivationMaps",
    "AttentionWeights",
    "Attribution",
    "Call",
    "Curve",
    "ErrorExplanation",
    "FaithfulnessCurve",
    "FeatureVisualization",
    "FunctionProbe",
    "GroupComparison",
    "GroupEffects",
    "LatentTraversal",
    "LayerProfile",
    "LayerTable",
    "Layers",
    "Leaderboard",
    "Ledger",
    "Lens",
    "Matrix",
    "MethodTable",
    "Probe",
    "Ranking",
    "ReceptiveField",
    "Record",
    "RecurrentStates",
    "Relevance",
    "Routes",
    "Rulebook",
    "Target",
    "TopInputs",
    "activation_maps",
    "area",
    "as_target",
    "attention_rollout",
    "attention_rollout_map",
    "attention_weights",
    "borrowed",
    "capture",
    "capture_functions",
    "cascading_randomization",
    "compare_groups",
    "compare_routes",
    "concept_relevance",
    "continuation",
    "contrast",
    "deep_dream",
    "direction",
    "edits",
    "errors",
    "evaluate",
    "explain_errors",
    "faithfulness",
    "feature_visualization",
    "grad_cam",
    "jacobian",
    "latent_traversal",
    "layer_maps",
    "layer_table",
    "load",
    "neuron",
    "noise_response",
    "plotting",
    "probability",
    "rank_concepts",
    "receptive_field",
    "recurrent_states",
    "relevance",
    "relevance_by_target",
    "results",
    "route",
    "run",
    "saliency",
    "select",
    "sensitivity",
    "top_inputs",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'layerlens' has no attribute {name!r}")
    module = importlib.import_module(f".{home or name}", __name__)
    value = getattr(module, name) if home else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
