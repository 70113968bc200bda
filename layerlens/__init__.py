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
    "Record": "record",
    "Call": "call",
    "Layers": "layers",
    "select": "layers",
    "Target": "target",
    "as_target": "target",
    "contrast": "contrasting",
    "borrowed": "borrow",
    # analyzers
    "layer_table": "analyzers",
    "route": "analyzers",
    "compare_routes": "analyzers",
    "activation_maps": "analyzers.activation",
    "attention_weights": "analyzers.activation",
    "attention_rollout": "analyzers.activation",
    "grad_cam": "analyzers.activation",
    "saliency": "analyzers.saliency",
    "sensitivity": "analyzers.sensitivity",
    "relevance": "analyzers.relevance",
    "relevance_by_target": "analyzers.relevance",
    "Rulebook": "analyzers.relevance",
    "rank_concepts": "analyzers.relevance",
    "concept_relevance": "analyzers.relevance",
    "top_inputs": "analyzers.relevance",
    # results
    "ActivationMaps": "results",
    "Attribution": "results",
    "LayerProfile": "results",
    "LayerTable": "results",
    "Ledger": "results",
    "Relevance": "results",
    "Routes": "results",
    "TopInputs": "results",
    "load": "results",
    # modules
    "edits": "",
    "errors": "",
    "plotting": "",
    "results": "",
}

if TYPE_CHECKING:
    from . import edits, errors, plotting, results
    from .analyzers.activation import activation_maps, attention_rollout, attention_weights
    from .analyzers.activation.grad_cam import grad_cam
    from .analyzers.layer_table import layer_table
    from .analyzers.relevance import Rulebook, concept_relevance, rank_concepts, relevance, relevance_by_target
    from .analyzers.relevance.top_inputs import top_inputs
    from .analyzers.routes import compare_routes, route
    from .analyzers.saliency import saliency
    from .analyzers.sensitivity import sensitivity
    from .borrow import borrowed
    from .call import Call
    from .capturing import capture, run
    from .contrasting import contrast
    from .layers import Layers, select
    from .lens import Lens
    from .probe import Probe
    from .record import Record
    from .results import (
        ActivationMaps,
        Attribution,
        LayerProfile,
        LayerTable,
        Ledger,
        Relevance,
        Routes,
        TopInputs,
        load,
    )
    from .target import Target, as_target

__all__ = [
    "ActivationMaps",
    "Attribution",
    "Call",
    "LayerProfile",
    "LayerTable",
    "Layers",
    "Ledger",
    "Lens",
    "Probe",
    "Record",
    "Relevance",
    "Routes",
    "Rulebook",
    "Target",
    "TopInputs",
    "activation_maps",
    "attention_rollout",
    "attention_weights",
    "as_target",
    "borrowed",
    "capture",
    "compare_routes",
    "concept_relevance",
    "contrast",
    "edits",
    "errors",
    "grad_cam",
    "layer_table",
    "load",
    "plotting",
    "rank_concepts",
    "relevance",
    "relevance_by_target",
    "route",
    "run",
    "results",
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
