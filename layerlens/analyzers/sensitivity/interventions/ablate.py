"""What the output loses when a layer, a channel, a head or a position is taken out of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.calls.fastpath import layers_called
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.statistics import spearman
from layerlens.errors import LayerNotFound, OptionError, check_count, choose, suggestion, warn
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.results import Explained, Ranking
from layerlens.targets.target import Spec

from ..output_metrics import Metric, readout
from .first_order import screened
from .intervention_sites import find
from .parts import KINDS, By
from .replacements import VALUES, RandomDirection, Source, Value, source_of
from .results import PARTS, ablation_explained, named, quantity, result, size_of, warn_of_misleading
from .trials import Part, Runner, Trial

NULL_DRAWS = 4
"""Random directions for each part, when the null is asked for."""


@measure(
    question="matters_to_output",
    cost="F for each part (and draw), many in one run, and some 10 F; with best= F for the best only, and 1 F + 1 B",
    needs="floating-point layer outputs",
    source="Morcos et al. 2018; Michel et al. 2019 (heads); screen: Molchanov et al. 2017",
)
def ablate(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    by: By = "layer",
    value: Value = "zero",
    reference: Any = None,
    target: Spec = None,
    metric: Metric = "auto",
    best: int | None = None,
    screen: Literal["first_order"] | None = None,
    together: Mapping[str, Sequence[str]] | None = None,
    draws: int = 8,
    heads: int | None = None,
    null: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> Explained:
    """How the output changes when one part of a model at a time is replaced by something that knows nothing of x.

    With y the output of the model as it is and y' with a part's values a replaced by v: y' - y for a target, and else
    the metrics of `noise_response`, such as KL(p || p'). The parts (`by`) are

    - `"layer"`: all that one call of a layer returned;
    - `"channel"`: a channel, or a feature, at all places; `"position"`: a token, time step or pixel with all its
      features; `"unit"`: a single number; `"layer_position"`: positions, as a table of layers by positions;
    - `"head"`: a head of an attention, that is, its share of what the output projection is given. Grouped queries are
      told by query head.

    The new values v (`value`) are zeros; means over samples, place by place; or the values of other samples at the same
    place, averaged over draws (resampling ablation; a single draw mostly shows which sample was drawn).

    Parts are measured exactly, many in one pass, each on its own copy of the batch: n parts (times draws) cost
    n + 2 sqrt(n) + 6 forward passes, less where a pass over many rows is cheaper than many passes. With `best`, all are
    first ranked by sum of g (v - a), g the gradient of the score, from one forward and one backward pass, and the best
    are measured; the result then says how well the order of the first agrees with that of the second.

    Args:
        model: any module; it is run in eval mode.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments.
        layers: which layers, as in `Selection`; None for every distinct activation, see `jacobian`,
            and for every attention with `by="head"`.
        by: what is taken out at a time.
        value: what is put in its place.
        reference: other samples, shaped like those of x, for means and resampled values: as x, or a data set (see
            `layerlens.inputs.batches`). None takes those of x itself: resampled values are then never a sample's own.
        target: a score to watch, as in `layerlens.as_target`; None for the whole output.
        metric: as in `noise_response`; `"auto"` with a target is its change, with its sign.
        best: how many parts to measure, those with the largest first-order effects; None for all.
        screen: `"first_order"` computes first-order effects also when all parts are measured.
        together: names of groups -> names of parts (`"blocks.2 channel 5"`) that are replaced at once; only the groups
            are measured then.
        draws: of other samples for `value="resample"`; at most as many as there are.
        heads: how many heads each attention has; None for what the modules say. Layers that are selected and are no
            known attention are taken for output projections.
        null: also move each part as far as its replacement does in a random direction (4 draws), for what a change of
            that size does by itself; for a signed change the root of the mean square over draws, on the value's side.
        seed: of draws and directions, and for models that draw numbers.
        progress: whether to show a bar; None when stderr is a terminal and it takes long.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `LayerProfile` in order of execution for `by="layer"`, a `Matrix` for `"layer_position"`, and else a `Ranking`
        with items such as `"blocks.0 head 2"`: means over the batch, with the standard error over draws. Its checks
        are `"per sample"`, `(parts, batch)`, and with a screen `"first order"`, `(parts,)`, and `"rank correlation"`
        of both (Spearman). `settings["not_measured"]` counts what a screen left, `settings["left_out"]` says which
        layers could not be measured, and why.

    Raises:
        InputError: when x or the reference cannot be read, or there are no other samples to take values from.
        LayerNotFound: when the selection matches no layer, or no attention, that can be measured.
        OptionError: when an option is unknown or out of range, or the metric does not fit the output.
        TargetError: when the target does not fit the output, or a screen finds no gradient.

    Warns:
        UserWarning: when there is one draw only, when signed changes cancel because samples of x take each other's
            values, when samples influence each other or the first axis is none of samples, when layers had to be left
            out, when a recurrent layer returns states besides what is changed, or when values are not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False))
        >>> _ = net[2].weight.data.copy_(torch.tensor([[1.0, 0.0, -2.0]]))
        >>> found = ablate(net, torch.ones(1, 2), "1", by="channel", target=0)
        >>> found.items[1], float(found.values[1])  # the middle one is not read
        ('1 channel 1', 0.0)
    """
    choose("by", by, KINDS)
    choose("value", value, VALUES)
    check_count("draws", draws)
    if best is not None:
        check_count("best", best)
        screen = screen or "first_order"
    if screen is not None:
        choose("screen", screen, ("first_order",))
    if together is not None and screen is not None:
        raise OptionError("together= measures the groups that are named; leave best= and screen= out.")
    with borrowed(model, grad=screen is not None), layers_called():
        inputs = as_inputs(x)
        with torch.no_grad():
            found = find(model, inputs, layers, by, heads, forward, seed)
            read = readout(metric, target, found.output, inputs.batch)
            source, count = source_of(model, inputs, value, reference, draws, forward, seed)
        parts = [Part(seam, number) for seam in found.seams for number in range(seam.grid.size)]
        groups: list[tuple[Part, ...]] = [(part,) for part in parts]
        first = None
        if together is not None:
            groups = _groups(together, {named(by, part): part for part in parts})
        elif screen is not None:
            first = screened(model, inputs, forward, found.seams, source, count, read, seed)
            order = first.abs().nan_to_num(nan=float("inf")).argsort(descending=True, stable=True)[:best]
            kept = order.sort().values
            groups, first = [groups[index] for index in kept.tolist()], first[kept]
        runner = Runner(model, inputs, forward, read, found, seed, progress, "ablation", found.copies)
        responses = _measured(runner, groups, source, count)  # (groups, draws, batch)
        chance = None
        if null:
            wild = RandomDirection(source, inputs.batch, seed)
            chance = _measured(runner, groups, wild, NULL_DRAWS).mean(dim=2)
    left_out = {**found.left_out, **runner.failed}
    made = [index for index, group in enumerate(groups) if not any(part.seam.name in runner.failed for part in group)]
    if not made:
        reasons = "; ".join(f"{name} {why}" for name, why in list(left_out.items())[:4])
        raise LayerNotFound(f"no part of the selected layers could be replaced: {reasons}.")
    responses, groups = responses[made], [groups[index] for index in made]
    by_draw = responses.mean(dim=2)
    values = by_draw.mean(dim=1)
    several = value == "resample"
    checks = {"per sample": responses.mean(dim=1)}
    if first is not None:
        checks |= _agreement(first[made], values, runner.signed())
    each = None if read.target is None else read.target.each
    if reference is None and value != "zero" and runner.signed() and len(set(each or ())) < 2:
        warn(
            "ablate: what samples of one batch gain by each other's values others lose, so that signed changes cancel "
            "in their mean. See checks['per sample'], or give reference= or metric='relative_change'.",
        )
    if several and count == 1:
        warn(
            "ablate: one draw shows which sample was drawn rather than what the part does. Use draws=8, and a "
            "reference of as many samples.",
        )
    names = [named(by, group[0]) for group in groups] if together is None else [list(together)[index] for index in made]
    warn_of_misleading("ablate", found, left_out, layers is not None, values, names)
    what, units = quantity(read)
    columns: dict[str, Any] = {
        "values": values,
        "error": by_draw.std(dim=1) / count**0.5 if several and count > 1 else None,
        "null": None if chance is None else size_of(chance[made], values, runner.signed()),
    }
    shared: dict[str, Any] = {
        "quantity": f"{what} without the {PARTS[by] if together is None else 'parts'}",
        "units": units,
        "signed": runner.signed(),
        "method": f"{value} ablation, {read.words}" + (f", {count} draw{'s' * (count > 1)}" if several else ""),
        "settings": {
            "by": by,
            "value": value,
            "metric": read.metric,
            "target": None if read.target is None else read.target.label,
            "draws": count,
            "best": best,
            "not_measured": len(parts) - len(groups) if together is None and best is not None else 0,
            "at_once": runner.copies,
            "seed": seed,
            "left_out": left_out,
        },
        "checks": checks,
        "explanation": ablation_explained(
            PARTS[by] if together is None else "group of parts",
            value,
            read,
            len(parts),
            None if best is None else len(groups),
        ),
    }
    if together is not None:
        return Ranking(items=tuple(names), **columns, **shared)
    return result(by, [group[0] for group in groups], columns, shared)


def _groups(together: Mapping[str, Sequence[str]], parts: Mapping[str, Part]) -> list[tuple[Part, ...]]:
    if not isinstance(together, Mapping) or not together:
        raise OptionError(f"together must map names of groups to lists of names of parts, got {together!r}.")
    for name, members in together.items():
        if isinstance(members, str) or not members:
            raise OptionError(f"together: group {name!r} must be a list of names of parts, got {members!r}.")
        for member in members:
            if member not in parts:
                raise OptionError(f"together: there is no part {member!r}.{suggestion(str(member), parts)}")
    return [tuple(parts[member] for member in dict.fromkeys(members)) for members in together.values()]


def _measured(runner: Runner, groups: Sequence[tuple[Part, ...]], source: Source, draws: int) -> torch.Tensor:
    """The changes, `(groups, draws, batch)`."""
    trials = [Trial(group, draw) for group in groups for draw in range(draws)]
    return runner(trials, source).reshape(len(groups), draws, -1)


def _agreement(first: torch.Tensor, exact: torch.Tensor, signed: bool) -> dict[str, torch.Tensor]:
    pair = (first, exact) if signed else (first.abs(), exact)
    return {"first order": first, "rank correlation": spearman(pair[0].unsqueeze(0), pair[1].unsqueeze(0)).reshape(())}
