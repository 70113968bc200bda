"""Saliency: how much each input value contributed to a score, from gradients."""

from .deeplift import deep_lift
from .gradients import gradient, input_x_gradient
from .integrated import integrated_gradients
from .methods import METHODS, saliency
from .rectified import deconvnet, guided_backprop
from .smooth import smooth_grad

__all__ = [
    "METHODS",
    "deconvnet",
    "deep_lift",
    "gradient",
    "guided_backprop",
    "input_x_gradient",
    "integrated_gradients",
    "saliency",
    "smooth_grad",
]
