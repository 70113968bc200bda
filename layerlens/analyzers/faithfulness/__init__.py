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
from .metrics.random_logit import random_logit
from .metrics.regions import irof, region_perturbation
from .metrics.road import road
from .metrics.sparsity import complexity, sparsity
from .metrics.stability import (
    local_lipschitz_estimate,
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
)
from .metrics.table import METRICS
from .randomization import cascading_randomization, efficient_mprt, smooth_mprt

__all__ = [
    "METRICS",
    "cascading_randomization",
    "completeness",
    "complexity",
    "comprehensiveness",
    "deletion",
    "efficient_mprt",
    "evaluate",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "infidelity",
    "insertion",
    "irof",
    "local_lipschitz_estimate",
    "max_sensitivity",
    "monotonicity",
    "monotonicity_correlation",
    "non_sensitivity",
    "pointing_game",
    "random_logit",
    "region_perturbation",
    "relative_input_stability",
    "relative_output_stability",
    "relative_representation_stability",
    "relevance_mass",
    "relevance_rank",
    "road",
    "sensitivity_n",
    "smooth_mprt",
    "sparsity",
    "sufficiency",
]
