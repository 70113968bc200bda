"""Faithfulness: whether a map tells what the model does, by metrics, controls and tasks whose truth is known."""

from .evaluate import evaluate
from .metrics.deletion import deletion
from .metrics.erasure import comprehensiveness, sufficiency
from .metrics.infidelity import infidelity, max_sensitivity
from .metrics.insertion import insertion
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
