"""Activations: what a layer returned, by itself or weighted by what it did for the score."""

from .attention import attention_weights
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
from .feature_visualization import feature_visualization
from .latent_traversal import latent_traversal
from .maps import activation_maps, layer_maps
from .receptive_field import receptive_field
from .recurrent import recurrent_states
from .rollout import attention_rollout
from .rollout_map import attention_rollout_map

__all__ = [
    "ablation_cam",
    "activation_maps",
    "attention_rollout",
    "attention_rollout_map",
    "attention_weights",
    "eigen_cam",
    "eigen_grad_cam",
    "feature_visualization",
    "finer_cam",
    "grad_cam",
    "latent_traversal",
    "layer_maps",
    "grad_cam_plus_plus",
    "guided_grad_cam",
    "hi_res_cam",
    "layer_cam",
    "receptive_field",
    "recurrent_states",
    "score_cam",
    "x_grad_cam",
]
