"""Layer conductance: how much of the integrated gradient flows through each unit of a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.features.baselines import baselines
from layerlens.analyzers.common.layer_gradient import Tap
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import Leaves, Scorer, freeze, warn_of_zeros
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .completeness import check_path_options, scores_at, until_complete
from .straight import check_layer, points


@method(
    family="path",
    passes="51 gradients or more (steps, until it is complete)",
    needs="a layer (where=), a baseline",
    source="Dhamdhere, Sundararajan & Yan 2018",
)
def layer_conductance(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    baseline: Any = "zero",
    steps: int = 50,
    tolerance: float = 0.05,
    max_steps: int = 200,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
) -> Attribution:
    """What each unit y of a layer passes on while the input goes straight from a baseline x' to x.

    Cond(y) = integral over a in 0..1 of dS/dy dy/da, at x' + a (x - x') (Dhamdhere, Sundararajan & Yan 2018, eq. 2).
    Where every way to the score leads through the layer, the units sum to S(x) - S(x'); the share that does not is the
    reported gap. `integrated_gradients` of a layer takes the straight way in the layer's own space instead; here its
    values move as inputs move them. Each piece between two steps counts by the mean of the gradients at its ends.

    Args:
        model: any module.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments; token ids count by
            their embeddings.
        target: what to score, as in `layerlens.as_target`; None is the class predicted at x.
        where: the layer, or a call of one (`"rnn#1"`).
        baseline: x', as in `integrated_gradients`.
        steps: pieces of the way, at first.
        tolerance: largest |sum - (S(x) - S(x'))| / |S(x) - S(x')| that is accepted; `math.inf` accepts any, as it
            should where the layer is one of several ways.
        max_steps: where doubling ends.
        batch_size: points in one pass; `"auto"` bounds it by memory.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        An `Attribution` shaped like the layer's output with the batch first, in units of the score; its checks are the
        relative `"completeness gap"` and the `"steps"` of each sample.

    Raises:
        OptionError: when no layer is given, an option is out of range, or the baseline does not fit the input.
        LayerNotFound: when `where` matches no layer; SelectionError when it matches several layers or calls.
        TargetError: when the score does not depend on the layer.

    Warns:
        UserWarning: when the tolerance is not reached, or the values of a sample are zero everywhere.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> result = layer_conductance(net, torch.ones(1, 3), target=1, where="1")
        >>> result.tensor.shape, bool(result.checks["completeness gap"] < 0.05)
        (torch.Size([1, 4]), True)
    """
    check_path_options(steps, tolerance, max_steps)
    check_layer("layer_conductance", where)
    with borrowed(model):
        freeze(model)
        scorer = Scorer(model, x, target, forward=forward)
        ends = {name: leaf.value.clone() for name, leaf in scorer.leaves.items()}
        score, batch = first_score(scorer, ends, batch_size)
        tap = Tap(scorer, where)
        starts, label = baselines(scorer, baseline)

        def integrate(rows: torch.Tensor, count: int) -> Leaves:
            ways = torch.linspace(0, 1, count + 1, dtype=torch.float64)
            total = torch.zeros_like(tap.value[rows], dtype=torch.float64)
            before: tuple[torch.Tensor, torch.Tensor] | None = None
            for some in torch.split(ways, max(1, batch // len(rows))):
                _, outputs, slopes = tap.gradients(points(starts, ends, rows, some), rows.repeat(len(some)))
                outputs = outputs.double().reshape(len(some), *total.shape)
                slopes = slopes.double().reshape(outputs.shape)
                if before is not None:
                    outputs, slopes = torch.cat([before[0], outputs]), torch.cat([before[1], slopes])
                total += (outputs.diff(dim=0) * (slopes[1:] + slopes[:-1]) / 2).sum(dim=0)
                before = outputs[-1:], slopes[-1:]
            return {tap.place.name: total}

        values, checks = until_complete(
            "layer_conductance",
            scorer.rows,
            integrate,
            {tap.place.name: tap.value},
            score,
            scores_at(scorer, starts, batch),
            steps=steps,
            tolerance=tolerance,
            max_steps=max_steps,
            batch=batch,
        )
        warn_of_zeros(values, "layer_conductance")
        return tap.attribution(
            values[tap.place.name],
            method="layer_conductance",
            settings={
                "baseline": label,
                "steps": steps,
                "tolerance": tolerance,
                "max_steps": max_steps,
                "batch_size": batch,
            },
            score=score,
            checks=checks,
        )
