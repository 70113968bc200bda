"""Saliency: how much each input value contributed to a score."""

from .auto import auto
from .by_target import saliency_by_target
from .cam import (
    ablation_cam,
    eigen_cam,
    eigen_grad_cam,
    finer_cam,
    grad_cam,
    grad_cam_plus_plus,
    guided_grad_cam,
    hi_res_cam,
    layer_cam,
    score_cam,
    x_grad_cam,
)
from .cam.rollout_map import attention_rollout_map
from .deeplift import deep_lift
from .deeplift.deep_shap import deep_shap
from .gradient.gradients import gradient, input_x_gradient
from .gradient.guided_backprop import deconvnet, guided_backprop
from .gradient.smooth_grad import smooth_grad, smooth_grad_squared, var_grad
from .mean_rank import mean_rank
from .path.blur_ig import blur_ig
from .path.gradient_shap import gradient_shap
from .path.guided_ig import guided_ig
from .path.integrated_gradients import integrated_gradients
from .path.layer_paths import internal_influence, layer_conductance
from .path.neuron_conductance import neuron_conductance
from .path.xrai import xrai
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
from .perturbation.leave_one_out import leave_one_out
from .saliency import methods, saliency

__all__ = [
    "ablation_cam",
    "attention_rollout_map",
    "auto",
    "blur_ig",
    "deconvnet",
    "deep_lift",
    "deep_shap",
    "eigen_cam",
    "eigen_grad_cam",
    "extremal_mask",
    "feature_ablation",
    "finer_cam",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient",
    "gradient_shap",
    "guided_backprop",
    "guided_grad_cam",
    "guided_ig",
    "hi_res_cam",
    "input_x_gradient",
    "integrated_gradients",
    "internal_influence",
    "kernel_shap",
    "layer_cam",
    "layer_conductance",
    "leave_one_out",
    "lime",
    "mean_rank",
    "methods",
    "neuron_conductance",
    "occlusion",
    "permutation",
    "rise",
    "saliency",
    "saliency_by_target",
    "score_cam",
    "shapley_sampling",
    "smooth_grad",
    "smooth_grad_squared",
    "sobol",
    "var_grad",
    "x_grad_cam",
    "xrai",
]
