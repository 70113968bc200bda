"""Faithfulness: whether a map shows what the model does, by metrics, controls and tasks with a known truth."""

from .evaluate import evaluate
from .metrics.infidelity import infidelity, max_sensitivity
from .metrics.insertion_deletion import comprehensiveness, deletion, insertion, sufficiency
from .metrics.localization import pointing_game, relevance_mass, relevance_rank
from .metrics.road import road
from .metrics.sparsity import sparsity
from .metrics.table import METRICS
from .randomization import cascading_randomization

__all__ = [
    "METRICS",
    "cascading_randomization",
    "comprehensiveness",
    "deletion",
    "evaluate",
    "infidelity",
    "insertion",
    "max_sensitivity",
    "pointing_game",
    "relevance_mass",
    "relevance_rank",
    "road",
    "sparsity",
    "sufficiency",
]
