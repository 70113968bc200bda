"""Faithfulness: whether a map tells what the model does, by metrics, controls and tasks whose truth is known."""

from .deletion import deletion
from .erasure import comprehensiveness, sufficiency
from .evaluate import evaluate
from .infidelity import infidelity, max_sensitivity
from .insertion import insertion
from .localization import pointing_game, relevance_mass, relevance_rank
from .metrics import METRICS
from .randomization import cascading_randomization
from .road import road
from .sparsity import sparsity

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
