"""Saliency: how much each input value contributed to a score."""

from .auto import auto
from .blur_ig import blur_ig
from .deep_shap import deep_shap
from .deeplift import deep_lift
from .gradient_shap import gradient_shap
from .gradients import gradient, input_x_gradient
from .guided_ig import guided_ig
from .integrated import integrated_gradients
from .internal_influence import internal_influence
from .layer_conductance import layer_conductance
from .leave_one_out import leave_one_out
from .methods import methods, saliency
from .perturbation import (
    extremal_mask,
    feature_ablation,
    kernel_shap,
    lime,
    occlusion,
    permutation,
    rise,
    shapley_sampling,
    sobol,
)
from .rectified import deconvnet, guided_backprop
from .smooth import smooth_grad
from .smooth_grad_squared import smooth_grad_squared
from .var_grad import var_grad
from .xrai import xrai

__all__ = [
    "auto",
    "blur_ig",
    "deconvnet",
    "deep_lift",
    "deep_shap",
    "extremal_mask",
    "feature_ablation",
    "gradient",
    "gradient_shap",
    "guided_backprop",
    "guided_ig",
    "input_x_gradient",
    "integrated_gradients",
    "internal_influence",
    "kernel_shap",
    "layer_conductance",
    "leave_one_out",
    "lime",
    "methods",
    "occlusion",
    "permutation",
    "rise",
    "saliency",
    "shapley_sampling",
    "smooth_grad",
    "smooth_grad_squared",
    "sobol",
    "var_grad",
    "xrai",
]
