"""Faithfulness: whether a map shows what the model does, by metrics, controls and tasks with a known truth."""

from .evaluate import evaluate
from .metrics.axioms import completeness, monotonicity, non_sensitivity
from .metrics.correlations import (
    faithfulness_correlation,
    faithfulness_estimate,
    monotonicity_correlation,
    sensitivity_n,
)
from .metrics.infidelity import infidelity, max_sensitivity
from .metrics.insertion_deletion import comprehensiveness, deletion, insertion, sufficiency
from .metrics.localization import pointing_game, relevance_mass, relevance_rank
from .metrics.regions import irof, region_perturbation
from .metrics.road import road
from .metrics.sparsity import complexity, sparsity
from .metrics.table import METRICS
from .randomization import cascading_randomization

__all__ = [
    "METRICS",
    "cascading_randomization",
    "completeness",
    "complexity",
    "comprehensiveness",
    "deletion",
    "evaluate",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "infidelity",
    "insertion",
    "irof",
    "max_sensitivity",
    "monotonicity",
    "monotonicity_correlation",
    "non_sensitivity",
    "pointing_game",
    "region_perturbation",
    "relevance_mass",
    "relevance_rank",
    "road",
    "sensitivity_n",
    "sparsity",
    "sufficiency",
]
