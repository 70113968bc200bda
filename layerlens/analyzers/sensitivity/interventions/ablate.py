"""What the output loses when a layer, a channel, a head or a position is taken out of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.features.basis_site import Sites
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.parts.grid import KINDS, By
from layerlens.analyzers.common.samples import said_once
from layerlens.errors import OptionError, check_count, choose, suggestion, warn
from layerlens.inputs.batches import Samples
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.fastpath import layers_called
from layerlens.results import Explained, Ranking
from layerlens.targets.target import Spec

from ..model_run import ModelRun
from ..output_metrics import Metric, choose_readout
from .first_order import agreement, first_order_effects, largest
from .intervention_sites import find_intervention_sites
from .replacements import VALUES, Value, choose_replacement
from .results import (
    PARTS,
    ablation_explanation,
    as_result,
    kind_of,
    null_values,
    part_name,
    quantity_and_units,
    warn_of_misleading,
)
from .trials import NULL_DRAWS, Part, TrialRunner

Groups = Mapping[str, Sequence[str]]


@measure(
    question="matters_to_output",
    cost="F for each part (and draw), many in one run, and some 10 F; with count= F for those only, and 1 F + 1 B",
    needs="floating-point layer outputs",
    source="Morcos et al. 2018; Michel et al. 2019 (heads); screen: Molchanov et al. 2017",
    renamed={"best": "count"},
)
def ablate(
    model: nn.Module,
    x: Input,
    layers: Sites = None,
    *,
    by: By = "layer",
    value: Value = "zero",
    reference: Samples | None = None,
    target: Spec = None,
    metric: Metric = "auto",
    count: int | None = None,
    screen: Literal["first_order"] | None = None,
    together: Groups | None = None,
    draws: int = 8,
    heads: int | None = None,
    null: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> Explained:
    """Measure how the output changes when one part of a model at a time is replaced by values that do not depend on x.

    With y the output of the model and y' the output with a part's values a replaced by v: y' - y for a target, and
    otherwise the metrics of `noise_response`, such as KL(p || p'). The parts (`by`) are

    - `"layer"`: all that one call of a layer returned, or the tensor that is named (`"rnn/h_n"`);
    - `"channel"`: a channel, or a feature, at all places; `"position"`: a token, time step or pixel with all its
      features; `"unit"`: a single number; `"layer_position"`: positions, as a table of layers by positions;
    - `"head"`: a head of an attention, that is, its share of the input of the output projection. With grouped queries,
      each query head is a part.

    Of a `Basis` (`ablate(x, basis)`, or in the list of layers) the parts are its features, and one more for its error:
    the code of a feature is replaced at all places, by zero, means or the codes of other samples, and the layer
    returns decode(codes) + error with all other codes and the error as they are. With `by="unit"` a part is a feature
    at one place. Features that are zero in all samples are not run for `value="zero"`.

    The new values v (`value`) are zeros; means over samples, place by place; or the values of other samples at the same
    place, averaged over draws (resampling ablation; a single draw mostly shows which sample was drawn).

    Parts are measured exactly, many in one pass, each on its own copy of the batch: n parts (times draws) cost
    n + 2 sqrt(n) + 6 forward passes, less where a pass over many rows is cheaper than many passes. With `count`, all
    parts are first ranked by sum of g (v - a), g the gradient of the score, from one forward and one backward pass, and
    the first ones are measured; the result then says how well both orders agree.

    Args:
        layers: which layers, see `Selection`, or bases; None for every distinct activation, see `jacobian`, or, with
            more than 64 layers, for the repeated blocks (`"**"` for all), and for every attention with `by="head"`.
            Channels are taken from all tensors of a layer that the model reads; other parts are listed for each of
            several (`"block/0 position 2"`).
        by: kind of the parts.
        value: what replaces a part: `"zero"`, `"mean"` or `"resample"`.
        reference: other samples, shaped like those of x, for means and resampled values: as x, or a data set (see
            `layerlens.inputs.batches`). None takes those of x itself: resampled values are then never a sample's own.
        target: a score to watch, see `as_target`; None for the whole output.
        metric: as in `noise_response`; `"auto"` with a target is its signed change.
        count: number of parts to measure, those with the largest first-order effects; None for all.
        screen: `"first_order"` computes first-order effects also when all parts are measured.
        together: names of groups -> names of parts (`"blocks.2 channel 5"`) that are replaced at once; then only the
            groups are measured.
        draws: number of draws of other samples for `value="resample"`; at most as many as there are.
        heads: number of heads of each attention; None for the number in the modules. Selected layers that are not a
            known attention are taken for output projections.
        null: whether to move each part as far as its replacement does in a random direction too (4 draws), for the
            effect of a change of that size by itself; for a signed change the root mean square over draws, with the
            sign of the value.

    Returns:
        A `LayerProfile` in order of execution for `by="layer"`, a `Matrix` for `"layer_position"`, and else a `Ranking`
        with items such as `"blocks.0 head 2"`, of a basis `"blocks.0 feature 7"` and `"blocks.0 error"`: means over the
        batch, with the standard error over draws. Its checks are `"per sample"`, `(parts, batch)`, and with a screen
        `"first order"`, `(parts,)`, and `"rank correlation"` of both (Spearman). `settings["not_measured"]` counts the
        parts that a screen skipped, `settings["left_out"]` maps the layers that could not be measured to the reason.

    Raises:
        InputError: when x or the reference cannot be read, or there are no other samples to take values from.
        LayerNotFound: when the selection matches no layer, or no attention, that can be measured.
        SelectionError, AxesUnknown: when a basis does not name one tensor of one call, or its units are unknown.
        OptionError: when an option is unknown or out of range, or the metric does not fit the output.
        TargetError: when the target does not fit the output, or a screen finds no gradient.

    Warns:
        UserWarning: when there is only one draw, signed changes cancel because samples of x take each other's values,
            samples influence each other or the first axis is not the batch, layers had to be left out, values are not
            finite, or only the blocks of a model are measured.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False))
        >>> _ = net[2].weight.data.copy_(torch.tensor([[1.0, 0.0, -2.0]]))
        >>> found = ablate(net, torch.ones(1, 2), "1", by="channel", target=0)
        >>> found.items[1], float(found.values[1])  # the second channel is not read
        ('1 channel 1', 0.0)
    """
    choose("by", by, KINDS)
    choose("value", value, VALUES)
    check_count("draws", draws)
    if count is not None:
        check_count("count", count)
    if screen is not None:
        choose("screen", screen, ("first_order",))
    screened = screen is not None or count is not None
    if together is not None and screened:
        raise OptionError("together= measures the groups that are named; leave count= and screen= out.")
    ablation = Ablation(by, value, target, metric, count, screened, together, draws)
    with borrowed(model, grad=ablation.screen), layers_called(), said_once() as passes:
        run = ModelRun(model, as_inputs(x), forward, seed, progress)
        measured = _measure(run, layers, reference, heads, null, ablation)
    runner = measured.runner
    classes = getattr(runner.readout.target, "each", None) or ()
    if reference is None and value != "zero" and runner.readout.signed and len(set(classes)) < 2:
        warn(
            "ablate: what samples of one batch gain from each other's values others lose, so signed changes cancel "
            "in their mean. See checks['per sample'], or give reference= or metric='relative_change'.",
        )
    if value == "resample" and measured.draws == 1:
        warn(
            "ablate: one draw shows which sample was drawn rather than what the part does. Use draws=8, and a "
            "reference of as many samples.",
        )
    warn_of_misleading("ablate", runner, layers is not None, measured.values, measured.names)
    return _as_result(measured, ablation, passes)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Options of `ablate` that define what is measured."""

    by: By
    value: Value
    target: Spec
    metric: Metric
    count: int | None
    screen: bool
    together: Groups | None
    draws: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """The groups of parts that were measured, each replaced at once; most hold one part."""

    runner: TrialRunner
    groups: list[tuple[Part, ...]]
    names: list[str]
    parts: int  # number of all parts
    draws: int
    responses: torch.Tensor  # (groups, draws, batch)
    first_order: torch.Tensor | None  # (groups,)
    null: torch.Tensor | None  # (groups, draws)

    @property
    def by_draw(self) -> torch.Tensor:
        """Means over samples, `(groups, draws)`."""
        return self.responses.mean(dim=2)

    @property
    def values(self) -> torch.Tensor:
        """Means over samples and draws, `(groups,)`."""
        return self.by_draw.mean(dim=1)


def _measure(
    run: ModelRun, layers: Sites, reference: Samples | None, heads: int | None, null: bool, ablation: Ablation
) -> Measured:
    """Find the parts, choose those to measure, and replace them."""
    with torch.no_grad():
        survey = find_intervention_sites(run, layers, ablation.by, heads)
        readout = choose_readout(ablation.metric, ablation.target, survey.output, run.inputs)
        replacement, draws = choose_replacement(run, ablation.value, reference, ablation.draws)
    parts = [Part(site, number) for site in survey.sites for number in range(site.grid.size)]
    groups: list[tuple[Part, ...]] = [(part,) for part in parts]
    names = [part_name(ablation.by, part) for part in parts]
    first_order = None
    if ablation.together is not None:
        groups = _named_groups(ablation.together, dict(zip(names, parts, strict=True)))
        names = list(ablation.together)
    elif ablation.screen:
        first_order = first_order_effects(run, survey.sites, replacement, draws, readout)
        chosen = largest(first_order, ablation.count)
        groups, names = [groups[index] for index in chosen], [names[index] for index in chosen]
        first_order = first_order[chosen]
    runner = TrialRunner(run, readout, survey, "ablation", survey.copies)
    silent = [ablation.value == "zero" and all(_silent(part) for part in group) for group in groups]
    running = [group for group, off in zip(groups, silent, strict=True) if not off]
    responses = torch.zeros(len(groups), draws, run.batch, dtype=torch.float64)
    null_changes = torch.zeros(len(groups), NULL_DRAWS, dtype=torch.float64) if null else None
    if running:
        responses[~torch.tensor(silent)] = runner(running, replacement, draws)
    if running and null_changes is not None:
        null_changes[~torch.tensor(silent)] = runner.null_changes(running, replacement)
    kept = runner.measured(groups)
    return Measured(
        runner,
        [groups[index] for index in kept],
        [names[index] for index in kept],
        len(parts),
        draws,
        responses[kept],
        None if first_order is None else first_order[kept],
        None if null_changes is None else null_changes[kept],
    )


def _silent(part: Part) -> bool:
    """Return whether a part is a feature that is zero in all samples."""
    return part.site.silent is not None and bool(part.site.silent[part.number])


def _named_groups(together: Groups, parts: Mapping[str, Part]) -> list[tuple[Part, ...]]:
    """Return the parts of each group.

    Raises:
        OptionError: when a group is not a list of names of parts.
    """
    if not isinstance(together, Mapping) or not together:
        raise OptionError(f"together must map names of groups to lists of names of parts, got {together!r}.")
    for name, members in together.items():
        if isinstance(members, str) or not members:
            raise OptionError(f"together: group {name!r} must be a list of names of parts, got {members!r}.")
        for member in members:
            if member not in parts:
                raise OptionError(f"together: there is no part {member!r}.{suggestion(str(member), parts)}")
    return [tuple(parts[member] for member in dict.fromkeys(members)) for members in together.values()]


def _as_result(measured: Measured, ablation: Ablation, passes: dict[str, str]) -> Explained:
    """Return values and errors with their meaning, in the result that fits the kind of part."""
    runner, by, grouped = measured.runner, ablation.by, ablation.together is not None
    readout, signed, values = runner.readout, runner.readout.signed, measured.values
    kind = kind_of(by, runner.survey.sites)
    resampled, draws = ablation.value == "resample", measured.draws
    quantity, units = quantity_and_units(readout)
    columns: dict[str, Any] = {
        "values": values,
        "error": measured.by_draw.std(dim=1) / draws**0.5 if resampled and draws > 1 else None,
        "null": None if measured.null is None else null_values(measured.null, values, signed),
    }
    draws_text = f", {draws} draw{'s' * (draws > 1)}" if resampled else ""
    fields: dict[str, Any] = {
        "quantity": f"{quantity} without the {'parts' if grouped else PARTS[kind]}",
        "units": units,
        "signed": signed,
        "method": f"{ablation.value} ablation, {readout.text}{draws_text}",
        "settings": {
            "by": by,
            "value": ablation.value,
            "metric": readout.metric,
            "target": None if readout.target is None else readout.target.label,
            "draws": draws,
            "count": ablation.count,
            "not_measured": 0 if ablation.count is None else measured.parts - len(measured.groups),
            "at_once": runner.copies,
            "seed": runner.run.seed,
            "left_out": runner.left_out,
            **passes,
        },
        "checks": {
            "per sample": measured.responses.mean(dim=1),
            **agreement(measured.first_order, measured.values, signed=signed),
        },
        "explanation": ablation_explanation(
            "group of parts" if grouped else PARTS[kind],
            ablation.value,
            readout,
            measured.parts,
            None if ablation.count is None else len(measured.groups),
        ),
    }
    if grouped:
        return Ranking(items=tuple(measured.names), **columns, **fields)
    return as_result(by, [group[0] for group in measured.groups], columns, fields)
