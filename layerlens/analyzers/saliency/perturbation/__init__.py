"""Perturbation: what happens to the score when parts of the input are removed."""

from .ablation import feature_ablation, permutation
from .extremal_mask import extremal_mask
from .interactions import interactions
from .lime import lime
from .occlusion import occlusion
from .rise import rise
from .shapley import kernel_shap, shapley_sampling
from .sobol import sobol

__all__ = [
    "extremal_mask",
    "feature_ablation",
    "interactions",
    "kernel_shap",
    "lime",
    "occlusion",
    "permutation",
    "rise",
    "shapley_sampling",
    "sobol",
]
