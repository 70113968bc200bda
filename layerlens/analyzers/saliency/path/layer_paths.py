"""Paths from a baseline to the input, read at a layer: conductance and internal influence of its units."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.features.baselines import Baseline, baselines
from layerlens.analyzers.common.leaves.layer_leaf import LeafCall, find_leaf_calls
from layerlens.analyzers.common.leaves.leaves import Leaf
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import Leaves, Scorer, backward_pass, scoring, warn_of_zeros
from layerlens.errors import OptionError, check_count, choose
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.probes.made_edits import Edit, Edited
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .completeness import Done, Quadrature, Riemann, Steps, quadrature as points_of, scores_at, until_complete

LATE = {"riemann_left": [0.0], "riemann_right": [1.0], "riemann_middle": [1.0, 0.0], "riemann_trapezoid": [0.5]}
"""Rule -> the weight of the gradient at the end of each piece, the rest being that of the one at its start."""


@method(
    family="path",
    passes="51 gradients or more (steps, until it is complete)",
    needs="a layer (where=), a baseline",
    source="Dhamdhere, Sundararajan & Yan 2018",
    changes_inputs=True,
)
def layer_conductance(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    baseline: Baseline = "zero",
    steps: int = 50,
    tolerance: float = 0.05,
    max_steps: int = 200,
    quadrature: Riemann = "riemann_trapezoid",
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Compute what each unit y of a layer passes on while the input moves straight from a baseline x' to x.

    Cond(y) = integral over a in 0..1 of dS/dy dy/da, at x' + a (x - x') (Dhamdhere, Sundararajan & Yan 2018, eq. 2).
    Where every path to the score leads through the layer, the units sum to S(x) - S(x'); the share that does not is the
    reported gap. Of several layers it is that of all together, or the largest of each by itself, whichever is smaller:
    layers side by side share the sum, and of those that follow each other each has all of it. `integrated_gradients` of
    a layer takes the straight path in the space of the layer instead; here its values move as inputs move them. Each
    piece between two steps counts by the mean of the gradients at its ends, or by the rule of `quadrature`.

    Args:
        where: the layer, or a call of one (`"rnn#1"`); or `input_of(layer)`; or a list of those.
        steps: number of pieces of the path, at first.
        tolerance: ... Give `math.inf` where the layer is one of several paths.
        quadrature: gradient of each piece: at its start (captum's), its end, or its middle (2 gradients for each
            piece), or the mean of those at its ends.

    Returns:
        An `Attribution` shaped like the layer's output with the batch first, in units of the score; its checks are the
        relative `"completeness gap"` and the `"steps"` of each sample.

    Warns:
        UserWarning: when the tolerance is not reached, or the values of a sample are zero everywhere.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> result = layer_conductance(net, torch.ones(1, 3), target=1, where="1")
        >>> result.tensor.shape, bool(result.checks["completeness gap"] < 0.05)
        (torch.Size([1, 4]), True)
    """
    path = Steps(steps, tolerance, max_steps)
    choose("quadrature", quadrature, get_args(Riemann))
    check_layer("layer_conductance", where)
    with scoring(model, x, target, forward=forward) as scorer:
        ends = scorer.values()
        score, batch = first_score(scorer, ends, batch_size)
        layer = LayerOnPath(scorer, where)
        starts, label = baselines(scorer, baseline)

        def integrate(rows: torch.Tensor, count: int, done: Done) -> Leaves:
            halves = 2 if quadrature == "riemann_middle" else 1  # the middle of two pieces is the end of one
            count *= halves
            fractions = torch.linspace(0, 1, count + 1, dtype=torch.float64)
            late = torch.tensor(LATE[quadrature] * (count // len(LATE[quadrature])), dtype=torch.float64)
            place = 0
            totals = {name: torch.zeros_like(one[rows], dtype=torch.float64) for name, one in layer.values.items()}
            before: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
            for some in torch.split(fractions, max(1, batch // len(rows))):
                seen = layer.gradients(points(starts, ends, rows, some), rows.repeat(len(some)))
                pieces = len(some) - (not before)
                done(len(rows) * pieces // halves)
                shares, place = late[place : place + pieces], place + pieces
                for name, total in totals.items():
                    outputs, slopes = (one.double().reshape(len(some), *total.shape) for one in seen[name])
                    if name in before:
                        outputs, slopes = torch.cat([before[name][0], outputs]), torch.cat([before[name][1], slopes])
                    weight = shares.to(slopes.device).reshape(-1, *[1] * total.ndim)
                    total += (outputs.diff(dim=0) * torch.lerp(slopes[:-1], slopes[1:], weight)).sum(dim=0)
                    before[name] = outputs[-1:], slopes[-1:]
            return totals

        values, checks = until_complete(
            "layer_conductance",
            scorer.rows,
            integrate,
            layer.values,
            score,
            scores_at(scorer, starts, batch),
            path,
            batch,
            alone=True,
        )
        warn_of_zeros(values, "layer_conductance")
        return layer.attribution(
            values,
            method="layer_conductance",
            settings={"baseline": label, **dataclasses.asdict(path), "quadrature": quadrature, "batch_size": batch},
            score=score,
            checks=checks,
        )


@method(
    family="path",
    passes="50 gradients (steps)",
    needs="a layer (where=), a baseline",
    source="Leino et al. 2018",
    changes_inputs=True,
)
def internal_influence(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    baseline: Baseline = "zero",
    steps: int = 50,
    quadrature: Quadrature = "gausslegendre",
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Average the gradient of the score at each unit y of a layer while the input moves straight from x' to x.

    Influence(y) = integral over a in 0..1 of dS/dy at x' + a (x - x') (Leino et al. 2018, eq. 1, with the uniform
    distribution of interest on that path), by a rule of quadrature.

    Args:
        where: the layer, or a call of one (`"rnn#1"`); or `input_of(layer)`; or a list of those.
        steps: number of gradients along the path.

    Returns:
        An `Attribution` shaped like the layer's output with the batch first, in units of score per activation.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> result = internal_influence(net, torch.ones(1, 3), target=1, where="1")
        >>> bool(torch.allclose(result.tensor[0], net[2].weight[1]))
        True
    """
    check_count("steps", steps)
    places, weights = points_of(steps, quadrature)
    check_layer("internal_influence", where)
    with scoring(model, x, target, forward=forward) as scorer:
        ends = scorer.values()
        score, batch = first_score(scorer, ends, batch_size)
        layer = LayerOnPath(scorer, where)
        starts, label = baselines(scorer, baseline)
        values = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in layer.values.items()}
        for rows in track(torch.split(scorer.rows, batch), "internal_influence"):
            together = max(1, batch // len(rows))
            for fractions, shares in zip(torch.split(places, together), torch.split(weights, together), strict=True):
                seen = layer.gradients(points(starts, ends, rows, fractions), rows.repeat(len(fractions)))
                for name, (_, slopes) in seen.items():
                    each = slopes.double().reshape(len(fractions), len(rows), *slopes.shape[1:])
                    values[name][rows] += torch.tensordot(shares.to(each.device), each, dims=1)
        warn_of_zeros(values, "internal_influence")
        return layer.attribution(
            values,
            method="internal_influence",
            settings={"baseline": label, "steps": steps, "quadrature": quadrature, "batch_size": batch},
            score=score,
            units="score per activation",
        )


def check_layer(method: str, where: Selection) -> None:
    """Check that a layer was given.

    Raises:
        OptionError: when none was.
    """
    if where is None or (isinstance(where, str) and where == "input"):
        raise OptionError(
            f"{method} is about the units of a layer: give where='name of a layer'. For the input itself take "
            "integrated_gradients."
        )


def points(starts: Leaves, ends: Leaves, rows: torch.Tensor, fractions: torch.Tensor) -> Leaves:
    """Return the points x' + a (x - x') of the samples `rows`, `(fractions * rows, ...)` by leaf, fraction by fraction.

    Args:
        starts: x' by leaf.
        ends: x by leaf.
        rows: the samples, `(n,)`.
        fractions: a, `(fractions,)` float64.
    """
    path_points = {}
    for name, end in ends.items():
        part = fractions.to(end.device).reshape(-1, *[1] * end.ndim)
        path_points[name] = (
            torch.lerp(starts[name][rows].double(), end[rows].double(), part).flatten(0, 1).to(end.dtype)
        )
    return path_points


class LayerOnPath:
    """Calls of layers, read while a scorer runs on changed inputs; use it inside `borrowed(model)`.

    Args:
        scorer: its leaves are the inputs.
        where: the layer, or a call of it, or its input, or a list of those.

    Attributes:
        places: the calls by name, and the layout of what they hold.
        values: the same for the inputs as they are, `(batch, ...)`.

    Raises:
        LayerNotFound: when `where` matches no layer; SelectionError when it matches several layers or calls.
        RecordError: when a layer did not run.
    """

    def __init__(self, scorer: Scorer, where: Selection) -> None:
        self.scorer = scorer
        found = find_leaf_calls(scorer.model, scorer.inputs, where, scorer.forward)
        self.places = {place.name: place for place, _ in found}
        self.values = {place.name: value for place, value in found}

    def gradients(
        self, values: Mapping[str, torch.Tensor], rows: torch.Tensor
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return what each call holds and the gradients of the scores at it, both `(n, ...)`.

        Args:
            values: one tensor `(n, ...)` per leaf of the scorer.
            rows: sample of the batch that each row belongs to, `(n,)`.

        Raises:
            TargetError: when the score does not depend on a layer.
        """
        apart = self.scorer.apart(values, rows)
        if apart and len(rows) > 1:
            single = [
                self.gradients({name: value[at : at + 1] for name, value in values.items()}, rows[at : at + 1])
                for at in range(len(rows))
            ]
            return {
                name: (torch.cat([one[name][0] for one in single]), torch.cat([one[name][1] for one in single]))
                for name in self.places
            }
        kept: dict[str, torch.Tensor] = {}
        with torch.enable_grad():
            score = self.scorer(values, rows, then=self.keeping(kept))
        slopes: dict[str, torch.Tensor | None] = dict.fromkeys(self.places)
        if score.requires_grad and kept:
            with backward_pass(self.scorer.model):
                slopes |= zip(
                    kept, torch.autograd.grad(score.sum(), list(kept.values()), allow_unused=True), strict=True
                )
        found = {}
        for name, place in self.places.items():
            slope = slopes[name]
            if slope is None:
                raise place.unread(self.scorer.target.label)
            both = place.batch_first(kept[name].detach()), place.batch_first(slope)
            found[name] = (both[0][rows], both[1][rows]) if apart else both
        return found

    def attribution(self, values: Mapping[str, torch.Tensor], **fields: Any) -> Attribution:
        """Return an `Attribution` of what the calls hold, each `(batch, ...)`; see `Scorer.fields`."""
        at_layer = copy.copy(self.scorer)
        at_layer.leaves = {name: Leaf(self.values[name], place=place) for name, place in self.places.items()}
        return at_layer.attribution({name: one.to(self.values[name].dtype) for name, one in values.items()}, **fields)

    def keeping(self, kept: dict[str, torch.Tensor]) -> dict[Edited, Edit]:
        """Return edits that keep what the calls hold, by name, and let the graph begin there at the latest."""
        edits: dict[Edited, Edit] = {}
        for one in {place.edited: None for place in self.places.values()}:
            edits[one] = _keep([place for place in self.places.values() if place.edited == one], kept)
        return edits


def _keep(places: Sequence[LeafCall], kept: dict[str, torch.Tensor]) -> Edit:
    seen = iter(range(1 << 62))

    def exchange(output: object) -> Any:
        index = next(seen)
        for place in places:
            if place.call == index:
                tensor = place.of(output)[1]
                leaf = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
                kept[place.name] = leaf
                output = place.exchange(place.batch_first(leaf))(output)
        return output

    return exchange
