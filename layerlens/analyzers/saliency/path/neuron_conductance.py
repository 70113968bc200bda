"""Conductance through a unit: what each input value contributes to the score by way of one unit of a layer."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.features.baselines import Baseline, baselines
from layerlens.analyzers.common.leaves.leaves import Leaf, unit_and_places
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import Leaves, Scorer, backward_pass, scoring, warn_of_zeros
from layerlens.errors import OptionError, SelectionError, check_count
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec
from layerlens.targets.units import Unit, chosen_units

from .completeness import Quadrature, quadrature as points_of
from .layer_paths import LayerOnPath, check_layer, points


@method(
    family="path",
    passes="100 gradients (two a step)",
    needs="a layer (where=), a unit of it (unit=), a baseline",
    source="Dhamdhere, Sundararajan & Yan 2018",
    changes_inputs=True,
)
def neuron_conductance(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    unit: Unit | None = None,
    baseline: Baseline = "zero",
    steps: int = 50,
    quadrature: Quadrature = "gausslegendre",
    multiply_by_inputs: bool = True,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Compute what each input value contributes to the score by way of one unit y of a layer.

    Cond_i(y) = (x_i - x'_i) * integral over a in 0..1 of dS/dy dy/dx_i at x' + a (x - x') (Dhamdhere, Sundararajan &
    Yan 2018, eq. 1). The values of a sample sum to the `layer_conductance` of the unit. For what raises the unit
    itself, whatever it does to the score, take any method with `target=neuron(layer, unit)`.

    Args:
        where: the layer, or a call of one (`"rnn#1"`); or `input_of(layer)`.
        unit: the unit, or several, whose conductances are added up; as in `neuron`. The conductance of an entry counts
            as often as a function adds the entry up.
        steps: number of points along the path.

    Raises:
        OptionError: when no layer or no unit is given.
        SelectionError: when `where` matches several layers, calls or tensors.
        TargetError: when the score does not depend on the layer, or there is no such unit.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> one = neuron_conductance(net, torch.ones(1, 3), target=1, where="1", unit=2)
        >>> every = neuron_conductance(net, torch.ones(1, 3), target=1, where="1", unit=slice(None))
        >>> one.tensor.shape, bool(torch.isclose(every.tensor.sum(), every.score - net(torch.zeros(1, 3))[0, 1]))
        (torch.Size([1, 3]), True)
    """
    check_count("steps", steps)
    fractions, weights = points_of(steps, quadrature)
    check_layer("neuron_conductance", where)
    if unit is None:
        raise OptionError(
            "neuron_conductance is about one unit of a layer: give unit=3, or unit=(3, row, column) of an image. For "
            "all units of the layer take layer_conductance."
        )
    with scoring(model, x, target, forward=forward) as scorer:
        ends = scorer.values()
        score, batch = first_score(scorer, ends, batch_size)
        layer = LayerOnPath(scorer, where)
        if len(layer.places) > 1:
            raise SelectionError(
                f"where={where!r} names {len(layer.places)} tensors: give one of {list(layer.places)}."
            )
        starts, label = baselines(scorer, baseline)
        values = {name: torch.zeros_like(end, dtype=torch.float64) for name, end in ends.items()}
        for rows in track(torch.split(scorer.rows, batch), "neuron_conductance"):
            together = max(1, batch // len(rows))
            for some, shares in zip(torch.split(fractions, together), torch.split(weights, together), strict=True):
                slopes = _through(layer, unit, points(starts, ends, rows, some), rows.repeat(len(some)))
                for name, slope in slopes.items():
                    each = slope.double().reshape(len(some), len(rows), *slope.shape[1:])
                    values[name][rows] += torch.tensordot(shares.to(each.device), each, dims=1)
        if multiply_by_inputs:
            values = {name: (ends[name].double() - starts[name].double()) * value for name, value in values.items()}
        warn_of_zeros(values, "neuron_conductance")
        settings = {"where": next(iter(layer.places)), "unit": str(unit), "baseline": label, "steps": steps}
        return scorer.attribution(
            {name: value.to(ends[name].dtype) for name, value in values.items()},
            method="neuron_conductance",
            settings={**settings, "quadrature": quadrature, "multiply_by_inputs": multiply_by_inputs,
                      "batch_size": batch},
            score=score,
            units="score" if multiply_by_inputs else "score per unit of input",
        )  # fmt: skip


def _through(layer: LayerOnPath, unit: Unit, values: Leaves, rows: torch.Tensor) -> Leaves:
    """The gradient of the score by way of the unit, one `(n, ...)` for each leaf of the scorer."""
    scorer: Scorer = layer.scorer
    apart = scorer.apart(values, rows)
    if apart and len(rows) > 1:
        single = [
            _through(layer, unit, {name: value[at : at + 1] for name, value in values.items()}, rows[at : at + 1])
            for at in range(len(rows))
        ]
        return {name: torch.cat([one[name] for one in single]) for name in values}
    starts = {name: value.detach().requires_grad_() for name, value in values.items()}
    kept: dict[str, torch.Tensor] = {}
    with torch.enable_grad():
        score = scorer(starts, rows, then=layer.keeping(kept))
    ((name, place),) = layer.places.items()
    with backward_pass(scorer.model):
        slope = None
        if name in kept and score.requires_grad:
            (slope,) = torch.autograd.grad(score.sum(), kept[name], allow_unused=True, retain_graph=True)
        if slope is None:
            raise place.unread(scorer.target.label)
        axis = unit_and_places(Leaf(layer.values[name], place=place))[0]
        pair = [place.batch_first(one) for one in (kept[name], slope.detach())]
        if layer.values[name].ndim > 2:
            pair = [one.unsqueeze(1) if axis is None else one.movedim(axis + 1, 1) for one in pair]
        output, slope = (one[rows] if apart else one for one in pair)
        counts = _counts(output, unit, name)
        found = torch.autograd.grad((output * slope * counts).sum(), list(starts.values()), allow_unused=True) if (
            output.requires_grad
        ) else [None] * len(starts)  # fmt: skip
    return {
        name: torch.zeros_like(start) if slope is None else slope
        for (name, start), slope in zip(starts.items(), found, strict=True)
    }


def _counts(output: torch.Tensor, unit: Unit, layer: str) -> torch.Tensor:
    """How often each entry of a layer's output is among the chosen ones, shaped like it."""
    with torch.enable_grad():
        entries = output.detach().requires_grad_()
        return torch.autograd.grad(chosen_units(entries, unit, layer=layer).sum(), entries)[0]
