"""Class activation maps that weight the units of a layer by the gradient of the score: one weighting each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from layerlens.analyzers.common.registry import method
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.model.trees import first_tensor
from layerlens.probes.probe import Probe
from layerlens.results import Attribution
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Spec

from .class_map import Weigh, class_map
from .layer_choice import Options, Reshape
from .layer_view import LayerView

EXAMPLE = """

Example:
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> result = {name}(net, torch.rand(1, 1, 8, 8), layer="1", target=0, relu=False)
    >>> result.values.shape, result.settings["size"]
    (torch.Size([1, 8, 8]), (6, 6))
"""
"""Example of every map here."""


class GradientCam(Protocol):
    """A method that makes a class activation map by one weighting."""

    def __call__(
        self,
        model: nn.Module,
        x: Input,
        layer: Selection = None,
        *,
        target: Spec = None,
        call: int | None = None,
        relu: bool = True,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        grid: tuple[int, ...] | None = None,
        reshape: Reshape | None = None,
        forward: Forward | None = None,
    ) -> Attribution:
        """Make the map."""


def gradient_cam(
    *,
    source: str,
    needs: str = "a layer with places",
    passes: str = "1 gradient",
    gradient: bool = True,
    conserves: bool = False,
    principal: bool = False,
) -> Callable[[Weigh], GradientCam]:
    """Make a weighting of units a class activation map: a registered method with the signature of all of them.

    The docstring of the weighting says what the map is; arguments, returns, errors and an example are added.

    Args:
        source: where the method was published.
        needs: what it needs of model and input.
        passes: its cost per sample.
        gradient: whether the weighting reads the gradient.
        conserves: whether to check how far the sum of the map is from the score.
        principal: whether the map is the first principal component of the weighted units, not their sum.
    """

    def decorate(weigh: Weigh) -> GradientCam:
        name = weigh.__name__

        def cam(
            model: nn.Module,
            x: Input,
            layer: Selection = None,
            *,
            target: Spec = None,
            call: int | None = None,
            relu: bool = True,
            aug_smooth: bool = False,
            eigen_smooth: bool = False,
            grid: tuple[int, ...] | None = None,
            reshape: Reshape | None = None,
            forward: Forward | None = None,
        ) -> Attribution:
            options = Options(layer, call, relu, aug_smooth, eigen_smooth, grid, reshape)
            return class_map(
                name, weigh, model, x, target, options, forward,
                gradient=gradient, principal=principal, conserves=conserves,
            )[0]  # fmt: skip

        cam.__name__, cam.__qualname__, cam.__module__ = name, name, weigh.__module__
        cam.__doc__ = inspect.cleandoc(weigh.__doc__ or "") + EXAMPLE.format(name=name)
        if principal:
            signature = inspect.signature(cam)
            kept = [one for option, one in signature.parameters.items() if option != "eigen_smooth"]
            cam.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return method(family="cam", passes=passes, needs=needs, source=source)(cam)

    return decorate


def _places(values: torch.Tensor) -> tuple[int, ...]:
    """The axes of the places in `(batch, unit, *places)`."""
    return tuple(range(2, values.ndim))


@gradient_cam(source="Zhou et al. 2016", needs="an end of global average pooling and one linear layer")
def cam(view: LayerView) -> torch.Tensor:
    """Weight the units of the last layer with places by the weights of the linear layer that reads their means.

    M(x, y) = sum over k of w_k A_k(x, y) (Zhou et al. 2016, eq. 2). The weights w of any target that the linear
    layer's output makes are the gradient with respect to the pooled units; for a class they are its row of the
    matrix. That the linear layer reads the mean of this layer's units, and makes the output, is checked in the run.
    """
    activations, gradients = view.activations, view.gradients
    _check_head(view)
    return gradients.sum(dim=_places(gradients), keepdim=True) * activations  # eq. 2


def _check_head(view: LayerView) -> None:
    """Check that the model's output is that of a linear layer, and that this layer read the mean of the units.

    Raises:
        OptionError: when it is not.
    """
    scorer, mean = view.scorer, view.activations.flatten(2).mean(dim=2)
    linear = any(isinstance(module, nn.Linear) for module in scorer.model.modules())
    with torch.no_grad(), Probe(scorer.model, nn.Linear if linear else (), inputs=True) as record:
        output = main_output(scorer.inputs.run(scorer.model, scorer.forward))
    for call in record.order:
        made, read = call.output, first_tensor(call.inputs)
        if made.shape == output.shape and torch.equal(made, output) and read is not None and read.shape == mean.shape:
            loose = max(1e-5, 8 * torch.finfo(made.dtype).eps)
            if torch.allclose(read.to(mean.dtype), mean, rtol=loose, atol=loose * float(mean.abs().max())):
                return
    raise OptionError(
        f"{type(scorer.model).__name__} does not end in the mean over the places of layer {view.path!r} and one "
        "linear layer, which cam needs. Name the layer before the pooling; grad_cam works on other "
        "models, and is the same on such ones."
    )


@gradient_cam(source="Selvaraju et al. 2017")
def grad_cam(view: LayerView) -> torch.Tensor:
    """Weight the units of a layer by the mean gradient of the score and add them up.

    a_k = mean over places of dS/dA_k; L = ReLU(sum over k of a_k A_k) (Selvaraju et al. 2017, eq. 1 and 2), where A
    is what the layer returned, before any operation that later writes into it. Tokens of a vision transformer are
    arranged on the grid of patches, without class and other leading tokens; steps of a series and tokens of a text
    are places in a row. The places are those that were followed through the model: the map is enlarged linearly between
    their positions in the input, so that a letter box is cut off, and is 0 where the model does not read the input.

    The tensor that is chosen for `layer=None` is the last one that has units at several places of the input, and on
    which the score depends at several of them; queries, keys and values of attention are left out. A layer that
    returns several such tensors is named with one of them: `"block/0"`.
    """
    return by_mean_gradient(view)


def by_mean_gradient(view: LayerView) -> torch.Tensor:
    """Weight the units by their mean gradient, as Grad-CAM does."""
    gradients = view.gradients
    weights = gradients.mean(dim=_places(gradients), keepdim=True)  # eq. 1, (batch, unit, 1, ...)
    return weights * view.activations  # eq. 2


@gradient_cam(source="Chattopadhay et al. 2018")
def grad_cam_plus_plus(view: LayerView) -> torch.Tensor:
    """Weight the units of a layer by a weighted mean of positive gradients, and add them up.

    w_k = sum over places of a_k ReLU(g_k), a_k = g_k^2 / (2 g_k^2 + g_k^3 sum over places of A_k), g_k = dS/dA_k
    (Chattopadhay et al. 2018, eq. 5 and 19, for a score that passes an exponential, whose value is left out: it
    multiplies a map by one number). Nothing is added to the denominator, so that small gradients count as large ones
    do.
    """
    activations, gradients = view.activations, view.gradients
    places = _places(activations)
    below = 2 + gradients * activations.sum(dim=places, keepdim=True)  # eq. 19 over g^2
    alpha = torch.where((gradients == 0) | (below == 0), torch.zeros_like(below), 1 / below)
    return (alpha * gradients.relu()).sum(dim=places, keepdim=True) * activations  # eq. 5


@gradient_cam(source="Draelos & Carin 2020", conserves=True)
def hi_res_cam(view: LayerView) -> torch.Tensor:
    """Multiply a layer's output by the gradient, place by place, and add the units up.

    L = sum over k of dS/dA_k A_k (Draelos & Carin 2020). Where the model ends in one linear layer after this one, the
    map sums to the score but for the bias, and shows exactly where the model looked; with global average pooling
    before that layer it is Grad-CAM.

    Returns:
        ... `checks["conservation gap"]` is |sum of the map on that grid, before ReLU, - score| / |score|.
    """
    return view.gradients * view.activations


@gradient_cam(source="Fu et al. 2020", conserves=True)
def x_grad_cam(view: LayerView) -> torch.Tensor:
    """Weight the units of a layer by the mean of the gradient where each is active, and add them up.

    w_k = sum over places of A_k / (sum over places of A_k) dS/dA_k (Fu et al. 2020), the weights that come closest to
    sensitivity (removing a unit changes the score by its map) and conservation (the map sums to the score). A unit
    whose sum is zero gets no weight.

    Returns:
        ... `checks["conservation gap"]` is |sum of the map on that grid, before ReLU, - score| / |score|.
    """
    activations, gradients = view.activations, view.gradients
    places = _places(activations)
    total = activations.sum(dim=places, keepdim=True)
    weights = (activations * gradients).sum(dim=places, keepdim=True) / total
    return torch.where(total == 0, torch.zeros_like(total), weights) * activations


@gradient_cam(source="Jiang et al. 2021")
def layer_cam(view: LayerView) -> torch.Tensor:
    """Weight a layer's output, place by place, by the positive part of the gradient and add the units up.

    L = ReLU(sum over k of ReLU(dS/dA_k) A_k) (Jiang et al. 2021), place by place; also for early layers.
    """
    return view.gradients.relu() * view.activations


@gradient_cam(
    source="Muhammad & Yeasin 2020",
    passes="1 forward (+ 1 gradient to choose the layer)",
    gradient=False,
    principal=True,
)
def eigen_cam(view: LayerView) -> torch.Tensor:
    """Project a layer's output on the first principal direction of its units.

    With A = U S V^T, places by units, L = A v_1 (Muhammad & Yeasin 2020), not centered. The sign of a singular vector
    is arbitrary: the map is turned to agree with the sum of the units. The score has no part in it, so it is the same
    map for every class; `checks["share of the component"]` is how much of the sum of squares it holds.
    """
    return view.activations


@gradient_cam(source="Gildenblat 2021 (grad-cam package)", principal=True)
def eigen_grad_cam(view: LayerView) -> torch.Tensor:
    """Project a layer's gradient times its output on the first principal direction of the units.

    EigenCAM of dS/dA A instead of A, which depends on the class (as in the package grad-cam, but not centered, so
    that the zero of the map keeps its meaning). The sign is that of the sum of the units.
    """
    return view.gradients * view.activations
