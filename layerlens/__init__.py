"""Look inside any PyTorch model: what each layer holds, what mattered in the input, and how the score flows.

    from layerlens import Lens
    lens = Lens(model, class_names=names)
    lens.relevance(x, target="Egyptian cat").plot()

Start with `Lens`. Every analyzer is also a plain function of a model: `layerlens.saliency(model, x, target=...)`.
"""

from __future__ import annotations

import importlib
from typing import Any

from .deprecated import RENAMED, install
from .errors import warn

__version__ = "0.2.0"

_NAMES = {
    # the lens, and what it is made of
    "lens": "Lens",
    "probes.probe": "Probe",
    "probes.run": "capture run",
    "probes.function_probe": "functions FunctionProbe",
    "probes.record": "Record",
    "probes.call": "Call",
    "model.layers": "Layers input_of select",
    "targets.base": "Target",
    "targets.target": "as_target",
    "targets.contrast": "contrast",
    "targets.units": "neuron direction deep_dream",
    "targets.detections": "box instance",
    "targets.regions": "area",
    "targets.tokens": "continuation",
    "targets.transcripts": "symbol transcript",
    "model.borrowed": "borrowed",
    "axes.followed": "name_axes",
    "inputs.batches": "Data",
    # analyzers
    "analyzers.structure": "layers route compare_routes",
    "analyzers.activation": """
        activation_maps attention attention_rollout
        feature_visualization recurrent_states latent_traversal layer_maps receptive_field
    """,
    "analyzers.saliency": "saliency saliency_by_target grad_cam attention_rollout_map mean_rank",
    "analyzers.saliency.perturbation": "interactions",
    "analyzers.sensitivity": """
        sensitivity jacobian lipschitz noise_response ablate patch circuit_faithfulness sobol morris weight_sensitivity
        attack attack_curve attack_drift corruption_curve
    """,
    "analyzers.relevance": """
        relevance relevance_by_target contributions attribution_graph Rulebook
    """,
    "analyzers.concepts": """
        rank_concepts concept_relevance top_inputs tcav concept_activation Basis SparseAutoencoder basis feature_effects
    """,
    "analyzers.uncertainty": "model_uncertainty",
    "analyzers.checks": "check check_gradient",
    "analyzers.faithfulness": "evaluate cascading_randomization",
    "analyzers.groups": "compare_groups explain_errors",
    "analyzers.influence": "influence",
    "analyzers.generation": "explain_answer explain_sampling generate steer",
    "analyzers.dynamics": """
        watch compare generalization_gap linear_probe geometry health logit_lens nonlinearity
        similarity
    """,
    "scale": "over open_store Store",
    "targets.probability": "probability",
    # results
    "results": """
        ActivationMaps AdversarialExamples AnswerAttribution AttentionWeights Attribution Curve ErrorExplanation
        FaithfulnessCurve FeatureVisualization Finding Generation GroupComparison GroupEffects Guide Influence
        LatentTraversal LayerProfile LayerTable Leaderboard Matrix MethodTable ModelChecks Ranking Ledger
        ReceptiveField RecurrentStates Relevance Routes SamplingAttribution Steering TopInputs load TrainingHistory
        LayerHealth LogitLens UnitStatistics AttributionGraph Contributions EnsembleAttribution
    """,
}
"""Module -> its public names. Nothing is imported before it is used, so that `import layerlens` costs next to nothing.
For type checkers and editors the same names are in `__init__.pyi`."""

install()

_MODULES = ("edits", "errors", "extend", "faithfulness", "plotting", "results", "rules")
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in RENAMED:
        warn(f"layerlens.{name} is now layerlens.{RENAMED[name]}.", DeprecationWarning)
        return __getattr__(RENAMED[name])
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module 'layerlens' has no attribute {name!r}")
    module = importlib.import_module(f".{_HOMES.get(name, name)}", __name__)
    value = getattr(module, name) if name in _HOMES else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
