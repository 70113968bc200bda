"""Class activation maps: the units of a layer, weighted for a score, laid over the input; one method a file."""

from .ablation_cam import ablation_cam
from .cam import cam
from .eigen_cam import eigen_cam
from .eigen_grad_cam import eigen_grad_cam
from .finer_cam import finer_cam
from .grad_cam import grad_cam
from .grad_cam_plus_plus import grad_cam_plus_plus
from .guided_grad_cam import guided_grad_cam
from .hi_res_cam import hi_res_cam
from .layer_cam import layer_cam
from .score_cam import score_cam
from .x_grad_cam import x_grad_cam

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
