"""Maps of several targets: one forward pass for those of gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from layerlens.analyzers.common.leaf_gradients import slopes_of
from layerlens.analyzers.common.registry import METHODS, method_named
from layerlens.analyzers.common.scorer import scoring
from layerlens.analyzers.common.target_scores import TargetScores
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.signatures import public
from layerlens.targets.target import Spec

from .gradient.gradients import of_slopes
from .gradient.guided_backprop import RULES, of_rectifiers, recorded
from .saliency import saliency, with_cost

SHARING = ("gradient", "input_x_gradient", *RULES)
"""Methods that take one forward pass for all targets, and a backward pass for each."""


@public
def saliency_by_target(
    model: nn.Module,
    x: Input,
    *,
    targets: Sequence[Spec],
    method: str = "input_x_gradient",
    where: Selection = None,
    forward: Forward | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> list[Attribution]:
    """Attribute the scores of several targets to the values of the input, by a method of choice.

    `gradient`, `input_x_gradient`, `guided_backprop` and `deconvnet` take one forward pass and a backward pass for each
    target; other methods are run once for each. `relevance_by_target` does the same for relevance.

    Args:
        targets: what to explain, each as in `as_target`; a target in it may be a list, with one for each sample.
        method: name of the method, as in `saliency`.
        options: options of the method, such as `{"steps": 20}`.

    Returns:
        One `Attribution` for each target, in their order.

    Raises:
        OptionError: when there is no target.
        InputError, TargetError, UnknownOption: as `saliency` does.

    Example:
        >>> import torch
        >>> net = nn.Linear(3, 2)
        >>> [found.target for found in saliency_by_target(net, torch.ones(1, 3), targets=[0, 1])]
        ['class 0', 'class 1']
    """
    if isinstance(targets, str) or not isinstance(targets, Sequence) or not targets:
        raise OptionError(f"targets must be a list of one or more targets, got {targets!r}.")
    row, given = method_named(method), dict(options or {})
    known = {"magnitude"} if row.name == "gradient" else set()
    if row.name not in SHARING or given.keys() - known or len(targets) == 1:
        shared: dict[str, Any] = {"method": method, "where": where, "forward": forward, "progress": progress, **given}
        each = targets if len(targets) < 2 else track(targets, row.name)
        return [saliency(model, x, target=target, **shared) for target in each]
    scores = TargetScores(targets)
    found = []
    with scoring(model, x, scores.joint_target(), where=where, forward=forward) as scorer:
        if row.name in RULES:
            start, graph, _ = recorded(scorer)
        else:
            scorer.through = scorer.inner.watching = True
            start = scorer.start()
            scorer(start)
        for number, score in enumerate(track(scores.values, row.name), 1):
            own = copy.copy(scorer)
            own.target = scores.targets[number - 1]
            keep = number < len(targets)
            if row.name in RULES:
                made = of_rectifiers(own, row.name, start, graph, score, keep=keep)
            else:
                made = of_slopes(own, row.name, score, slopes_of(own, score, start, keep=keep), **given)
            scorer.interacting = own.interacting
            found.append(with_cost(made, METHODS[row.name]))
    return found
