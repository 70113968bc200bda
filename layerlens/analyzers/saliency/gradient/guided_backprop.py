"""Guided backpropagation and deconvnet: gradients with another backward pass through rectifiers.

Rectifiers are found as nodes of autograd's graph, so that a module used twice, a functional call, an in-place call
and a ReLU6 all count; hooks on modules miss those.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.samples import slopes_by_sample
from layerlens.analyzers.common.scorer import Leaves, Scorer, backward_pass, scoring, warn_of_zeros
from layerlens.analyzers.graph.graph import Graph, NodeInfo
from layerlens.analyzers.graph.recorder import Recorder
from layerlens.analyzers.relevance.rules.operation_table import TABLE
from layerlens.errors import TargetError, warn
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

Gradients = tuple[torch.Tensor | None, ...]


@method(family="gradient", passes="1 gradient", needs="ReLU or ReLU6", source="Springenberg et al. 2015")
def guided_backprop(
    model: nn.Module, x: Input, *, target: Spec = None, where: Selection = None, forward: Forward | None = None
) -> Attribution:
    """Guided backpropagation: rectifiers pass a gradient where their input and the gradient are above 0.

    g_in = g_out [x > 0] [g_out > 0] at every ReLU (Springenberg et al. 2015, ICLR workshop, fig. 1). A ReLU6 passes
    it between 0 and 6. It resembles an edge detector and depends little on the class (Adebayo et al. 2018).

    Args:
        model: ... It has ReLU or ReLU6.

    Returns:
        An `Attribution` shaped like the input, in units of the score per unit of input.

    Warns:
        UserWarning: when the model has no rectifier, or the values of a sample are zero everywhere.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> _ = [parameter.data.fill_(1.0) for parameter in net.parameters()]
        >>> guided_backprop(net, torch.ones(1, 2), target=0).values.shape
        torch.Size([1, 2])
    """
    return _rectified(model, x, target, where, forward, "guided_backprop")


@method(family="gradient", passes="1 gradient", needs="ReLU or ReLU6", source="Zeiler & Fergus 2014")
def deconvnet(
    model: nn.Module, x: Input, *, target: Spec = None, where: Selection = None, forward: Forward | None = None
) -> Attribution:
    """Deconvnet: rectifiers pass a gradient where the gradient is above 0, whatever their input was.

    g_in = g_out [g_out > 0] at every ReLU and ReLU6 (Zeiler & Fergus 2014, ECCV, sec. 2.1; compared in Springenberg et
    al. 2015, fig. 1).

    Args:
        model: ... It has ReLU or ReLU6.

    Returns:
        An `Attribution` shaped like the input, in units of the score per unit of input.

    Warns:
        UserWarning: when the model has no rectifier, or the values of a sample are zero everywhere.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> _ = [parameter.data.fill_(1.0) for parameter in net.parameters()]
        >>> deconvnet(net, torch.ones(1, 2), target=0).values.shape
        torch.Size([1, 2])
    """
    return _rectified(model, x, target, where, forward, "deconvnet")


RULES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "guided_backprop": lambda native, outer: native.clamp(min=0),
    "deconvnet": lambda native, outer: outer.clamp(min=0),
}
"""Method -> the gradient that a rectifier passes, of the one it would pass and the one that reaches it."""


def _rectified(
    model: nn.Module, x: Input, target: Spec, where: Selection, forward: Forward | None, name: str
) -> Attribution:
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        leaves, graph, score = recorded(scorer)
        return of_rectifiers(scorer, name, leaves, graph, score)


def recorded(scorer: Scorer) -> tuple[Leaves, Graph, torch.Tensor]:
    """Return leaves with gradients, and the graph and scores of a run on them."""
    leaves = scorer.start()
    graph = Graph(leaves.values(), TABLE)
    with Recorder(graph, noting=False):  # which gives rectifiers that write into a view a node of their own
        return leaves, graph, scorer(leaves)


def of_rectifiers(
    scorer: Scorer, name: str, leaves: Leaves, graph: Graph, score: torch.Tensor, *, keep: bool = False
) -> Attribution:
    """Return the result of `guided_backprop` or `deconvnet` from a run.

    Args:
        scorer: scorer of the run.
        name: name of the method.
        leaves: its leaves.
        graph: its graph.
        score: its scores, `(batch,)`.
        keep: whether the graph is differentiated once more.

    Raises:
        TargetError: when no gradient reaches the input.
    """
    if score.grad_fn is None or not graph.visit(score.grad_fn).depends:
        raise TargetError(f"no gradient flows from the score {scorer.target.label!r} to the input.")
    rectifiers = [info for info in graph.reached(graph.visit(score.grad_fn)) if _rectifies(info)]
    if not rectifiers:
        warn(f"{name}: the model has no ReLU and no ReLU6, so this is its gradient.")

    def hook(gradients: Gradients, outer: Gradients) -> Gradients | None:
        native, above = gradients[0], outer[0]
        if native is None or above is None:
            return None
        return (RULES[name](native, above), *gradients[1:])

    handles = [info.node.register_hook(hook) for info in rectifiers]
    try:
        with backward_pass(scorer.model):
            slopes, scorer.interacting = slopes_by_sample(score, list(leaves.values()), run=scorer.run, keep=keep)
    finally:
        for handle in handles:
            handle.remove()
    values = {
        leaf: torch.zeros_like(value) if gradient is None else gradient
        for (leaf, value), gradient in zip(leaves.items(), slopes, strict=True)
    }
    warn_of_zeros(values, name)
    return scorer.attribution(
        values,
        method=name,
        settings={"rectifiers": len(rectifiers)},
        score=score,
        units="score per unit of input",
    )


def _rectifies(info: NodeInfo) -> bool:
    if info.op == "Hardtanh":
        return float(info.node._saved_min_val) == 0
    if info.op in ("Clamp", "ClampMin"):
        low = getattr(info.node, "_saved_min", None)
        return isinstance(low, (int, float)) and float(low) == 0
    return info.op == "Relu" or (info.op == "Threshold" and float(info.node._saved_threshold) == 0)
