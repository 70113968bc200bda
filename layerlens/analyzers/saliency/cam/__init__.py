"""Class activation maps: the units of a layer, weighted for a score and enlarged to the input."""

from .ablation_cams import ablation_cam, score_cam
from .composed_cams import finer_cam, guided_grad_cam
from .gradient_cams import (
    cam,
    eigen_cam,
    eigen_grad_cam,
    grad_cam,
    grad_cam_plus_plus,
    hi_res_cam,
    layer_cam,
    x_grad_cam,
)

__all__ = [
    "ablation_cam",
    "cam",
    "eigen_cam",
    "eigen_grad_cam",
    "finer_cam",
    "grad_cam",
    "grad_cam_plus_plus",
    "guided_grad_cam",
    "hi_res_cam",
    "layer_cam",
    "score_cam",
    "x_grad_cam",
]
