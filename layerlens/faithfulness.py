"""Metrics of faithfulness, their controls, and tasks whose truth is known; `layerlens.evaluate` uses them all."""

from .analyzers.faithfulness import (
    METRICS,
    cascading_randomization,
    comprehensiveness,
    deletion,
    evaluate,
    infidelity,
    insertion,
    max_sensitivity,
    pointing_game,
    relevance_mass,
    relevance_rank,
    road,
    sparsity,
    sufficiency,
)
from .analyzers.faithfulness.tasks import Task, additive_model, known_shapley, masked_objects, planted_watermark

__all__ = [
    "METRICS",
    "Task",
    "additive_model",
    "cascading_randomization",
    "comprehensiveness",
    "deletion",
    "evaluate",
    "infidelity",
    "insertion",
    "known_shapley",
    "masked_objects",
    "max_sensitivity",
    "planted_watermark",
    "pointing_game",
    "relevance_mass",
    "relevance_rank",
    "road",
    "sparsity",
    "sufficiency",
]
