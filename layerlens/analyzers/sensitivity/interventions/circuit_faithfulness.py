"""Whether the parts that a table or a graph names do make the score: only they are kept, or only they are taken out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from layerlens.analyzers.common.features.basis import Basis
from layerlens.analyzers.common.samples import said_once
from layerlens.errors import OptionError, TargetError, check_count, choose, suggestion, warn
from layerlens.inputs.batches import Samples
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed, seed_torch
from layerlens.model.fastpath import layers_called
from layerlens.results import AttributionGraph, Contributions, Curve, LayerProfile, Ranking
from layerlens.signatures import public
from layerlens.targets.target import Spec, as_target

from ..model_run import ModelRun
from ..output_metrics import Readout
from .edge_trials import Edge, EdgeTrials
from .intervention_sites import SiteSurvey, find_intervention_sites
from .patch import check_same_form
from .replacements import RecordedValues, Replacement, Value, choose_replacement
from .results import part_name
from .trials import Part, TrialRunner

Parts: TypeAlias = "AttributionGraph | Contributions | Ranking | LayerProfile | Mapping[str, float] | Sequence[str]"
"""Results whose items are parts, part -> its value, or names of parts, the best first."""

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
SERIES = ("best kept", "best removed", "random kept", "random removed")
_NAME = re.compile(r"^(?P<layer>.*?)(?: (?P<by>head|channel|position|unit) (?P<index>\d+|\(.*\)))?$")


@public
def circuit_faithfulness(
    model: nn.Module,
    parts: Parts,
    x: Input,
    other: Input | None = None,
    *,
    target: Spec = None,
    of: Literal["nodes", "edges"] = "nodes",
    order: Literal["size", "value"] = "size",
    k: Sequence[int] | None = None,
    value: Value = "zero",
    reference: Samples | None = None,
    controls: int = 4,
    bases: Basis | Sequence[Basis] = (),
    heads: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> Curve:
    """Measure how much of a score is left when only the best parts of a model are kept, and when only they are removed.

    With S the score, S_k the score when all parts but the k best are replaced at once, and S_0 that when all parts are,
    the curve is (S_k - S_0) / (S - S_0): 1 where the k parts suffice (the circuit performance ratio of Mueller et al.
    2025). The second curve replaces only the k best, and falls to 0 as soon as parts that are needed are gone. Of a
    contrast with a corrupted input (`other`), parts are replaced by their values there (resampling by pairs; Wang et
    al. 2022), else as in `ablate`.

    With `of="edges"` the edges of an attribution graph are kept and removed: where the edge from u to v is cut, v is
    computed with the replaced value of u, and other parts with the one that u has in the trial (path patching, Wang et
    al. 2022). Each receiver needs a run of its own; `settings["passes"]` counts them.

    Args:
        parts: `attribution_graph`, `contributions` (by the difference from the other input, or
            the total), a ranking of `ablate` or `patch`, part -> value,
            or names, the best first. All of its parts are the circuit's universe; what it does not name stays as it is.
        x: ... This is the clean input.
        other: corrupted input of the same shapes, whose values replace those of the parts; None for `value`.
        of: whether `"nodes"` or `"edges"` are kept and removed. Edges need an attribution graph; those from an input
            are cut with `other` alone, and kept without.
        order: whether parts with the largest size, or the largest value, come first.
        k: numbers of best parts; None for 1 % to 75 % of them.
        value: what replaces the parts without `other`: `"zero"`, `"mean"` or `"resample"`, as in `ablate`.
        reference: other samples, as in `ablate`.
        controls: number of random orders, whose mean is drawn as a control; 0 for none.
        bases: bases whose features, or errors, are among the parts.
        heads: number of heads of each attention, as in `ablate`.

    Returns:
        A `Curve` over the share of the parts, or edges, with the series `"best kept"`, `"best removed"`,
        `"random kept"` and `"random removed"`, and errors over samples. The checks are `"area"`, `(series,)`, the area
        below each curve from no part to all, `"area per sample"`, `(series, batch)`, whose mean it is, and `"scores"`,
        `(2,)`: S and S_0. `settings["passes"]` counts the runs with replaced parts.

    Raises:
        InputError: when the inputs differ in shape, or there are no other samples to take values from.
        LayerNotFound: when the layer of a part is unknown.
        OptionError: when there is no part, a part does not exist, or an option is out of range.
        TargetError: when the score does not change when all parts are replaced.

    Warns:
        UserWarning: when all parts together hardly change the score.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> _ = net[0].weight.data.copy_(torch.eye(2)), net[1].weight.data.copy_(torch.tensor([[3.0, 1.0]]))
        >>> names = ["0 channel 0", "0 channel 1"]
        >>> found = circuit_faithfulness(net, names, torch.ones(1, 2), target=0, k=[1], controls=0)
        >>> found.of("best kept").tolist()
        [0.0, 0.75, 1.0]
    """
    choose("order", order, ("size", "value"))
    choose("of", of, ("nodes", "edges"))
    if controls:
        check_count("controls", controls)
    edges = _edges(parts, order, other is not None) if of == "edges" else []
    ranked = _in_order(parts, edges) if of == "edges" else _ranked(parts, order)
    counts = _counts(k, len(edges or ranked))
    with borrowed(model, grad=False), torch.no_grad(), layers_called(), said_once() as passes:
        clean = as_inputs(x)
        run = ModelRun(model, clean, forward, seed, progress)
        survey, found = _find(run, ranked, heads, [bases] if isinstance(bases, Basis) else bases)
        replacement, draws = _replacement(run, other, value, reference)
        seed_torch(seed)
        aim = as_target(target).on(clean).resolve(survey.output)
        start = aim(survey.output, torch.arange(run.batch)).double().cpu()
        runner = TrialRunner(run, Readout("change", aim), survey, "circuit_faithfulness", survey.copies)
        every: list[Any] = list(edges or found)
        orders = [every, *_shuffled(every, controls, seed)]
        groups = [one for way in orders for count in counts for one in (tuple(way[count:]), tuple(way[:count]))]
        groups = [tuple(every), *groups]
        runs = len(groups) * draws
        if isinstance(parts, AttributionGraph) and edges:
            named = dict(zip(ranked, found, strict=True))
            trials = EdgeTrials(runner, named, _inputs_of(parts), None if other is None else as_inputs(other))
            changes = trials(groups, replacement, draws).mean(dim=1) - start
            runs = trials.passes
        else:
            changes = runner(groups, replacement, draws).mean(dim=1)  # (groups, batch)
    _check_difference(start, changes[0], aim.label)
    points = torch.tensor([0, *counts, len(every)], dtype=torch.float64) / len(every)
    rows = _curves(changes[0], changes[1:].reshape(len(orders), len(counts), 2, -1))
    areas = torch.trapezoid(rows, points, dim=1)  # (series, batch)
    what = "values of the other input" if other is not None else {"zero": "zeros"}.get(value, f"{value} values")
    names = SERIES if controls else SERIES[:2]
    return Curve(
        quantity="share of the score that is left",
        along=f"share of the {'edges' if edges else 'parts'}",
        points=points,
        series=names,
        values=rows.mean(dim=2),
        units="1",
        method=f"circuit faithfulness, {aim.label}, {what}",
        settings={
            "of": of, "parts": len(found), **({"edges": len(edges)} if edges else {}), "k": counts, "order": order,
            "value": "other" if other is not None else value,
            "target": aim.label, "controls": controls, "draws": draws, "passes": runs,
            "seed": seed,
            "left_out": runner.left_out, **passes,
        },
        error=None if run.batch < 2 else rows.std(dim=2) / run.batch**0.5,
        checks={
            "area": areas.mean(dim=1),
            "area per sample": areas,
            "scores": torch.stack([start.mean(), (start + changes[0]).mean()]),
        },
        explanation=(
            "Each value is the share of the score that is left when only the k best parts keep their values, or when "
            "only they lose them: parts that make the score raise the first curve and lower the second early.",
            "What is not among the parts stays as it is, and the values that replace the others are not those of a run "
            "that the model has seen. A part that others can replace is not needed, although it contributes.",
        ),
    )  # fmt: skip


def _curves(empty: torch.Tensor, changes: torch.Tensor) -> torch.Tensor:
    """Return the curves with their ends, `(series, points, batch)`, in shares of what all parts make.

    Args:
        empty: change when all parts are replaced, `(batch,)`.
        changes: change of each trial, `(orders, counts, kept or removed, batch)`.
    """
    whole = -empty.mean()
    left = (changes - empty) / whole
    none, every = torch.zeros_like(empty).unsqueeze(0), (-empty / whole).unsqueeze(0)
    found = []
    for orders in (left[:1], left[1:]):
        if len(orders):
            kept, removed = orders.mean(dim=0).unbind(dim=1)  # (counts, batch) each
            found += [torch.cat([none, kept, every]), torch.cat([every, removed, none])]
    return torch.stack(found)


def _ranked(parts: Parts, order: str) -> list[str]:
    """Return the names of the parts, the best first.

    Raises:
        OptionError: when there is none, values are missing, or there are several series.
    """
    series = getattr(parts, "series", ())
    if len(series) > 1:
        raise OptionError(f"parts has several series, {', '.join(series)}: give a dict of part -> value.")
    if isinstance(parts, AttributionGraph):
        values = dict(parts.ranked())
    elif isinstance(parts, Contributions):
        values = dict(parts.ranked("total" if parts.difference is None else "difference"))
    elif isinstance(parts, Ranking):
        values = dict(parts.ranked())
    elif isinstance(parts, LayerProfile):
        values = dict(zip(parts.layers, parts.values.flatten().tolist(), strict=True))
    elif isinstance(parts, Mapping):
        values = {name: float(number) for name, number in parts.items()}
    elif isinstance(parts, Sequence) and not isinstance(parts, str):
        values = {name: -float(place) for place, name in enumerate(parts)}
        order = "value"
    else:
        raise OptionError(f"parts must be a result whose items are parts, or their names, got {parts!r}.")
    if not values:
        raise OptionError("there is no part to keep or remove: give one or more names.")
    missing = [name for name, number in values.items() if number != number]
    if missing:
        raise OptionError(f"part {missing[0]!r} has no value: it is NaN.")
    return sorted(values, key=lambda name: -abs(values[name]) if order == "size" else -values[name])


def _edges(parts: Parts, order: str, inputs: bool) -> list[Edge]:
    """Return the edges of a graph, the best first; those from inputs if `inputs`.

    Raises:
        OptionError: when it is not a graph, or has no edge.
    """
    if not isinstance(parts, AttributionGraph):
        raise OptionError(
            f"of='edges' needs a graph, lens.attribution_graph(x, ...), not {type(parts).__name__}: give one, or "
            "of='nodes'."
        )
    found = [edge for edge in parts.edges() if inputs or edge[0] not in parts.inputs]
    if not found:
        raise OptionError("the graph has no edge that can be cut: prune less, give other=, or a smaller keep=.")
    ranked = sorted(found, key=lambda edge: -abs(edge[2]) if order == "size" else -edge[2])
    return [(sender, receiver) for sender, receiver, _ in ranked]


def _in_order(parts: Parts, edges: Sequence[Edge]) -> list[str]:
    """Return the parts that edges begin or end at, in the order of execution."""
    assert isinstance(parts, AttributionGraph)
    named = {name for edge in edges for name in edge} - {*parts.inputs}
    return [name for name in parts.nodes if name in named]


def _inputs_of(graph: AttributionGraph) -> dict[str, str | None]:
    """Return the tensor of each node that is an input; None for all, where there is one."""
    if len(graph.inputs) == 1:
        return {graph.inputs[0]: None}
    return {name: name.removeprefix("input ").removesuffix(" of the model") for name in graph.inputs}


def _counts(k: Sequence[int] | None, parts: int) -> list[int]:
    """Return the numbers of best parts, rising, without none and all.

    Raises:
        OptionError: when one is out of range.
    """
    if k is None:
        return sorted({round(share * parts) for share in SHARES} - {0, parts})
    for count in k:
        check_count("k", count)
        if count > parts:
            raise OptionError(f"k={count}, but there are {parts} parts.")
    return sorted(set(k) - {parts})


def _find(
    run: ModelRun, names: Sequence[str], heads: int | None, bases: Sequence[Basis]
) -> tuple[SiteSurvey, list[Part]]:
    """Return what can be replaced, and the parts of these names.

    Raises:
        OptionError: when there is no such part.
    """
    surveys = [("layer", find_intervention_sites(run, bases, "layer", heads))] if bases else []
    known = _named(surveys)
    layers: dict[str, list[str]] = {}
    for name in names:
        match = _NAME.match(name)
        assert match is not None
        if name not in known:
            layer = match["layer"].partition(" #")[0]
            if not match["by"] and " " in layer:
                raise OptionError(
                    f"there is no part {name!r}. For a feature of a basis, or its error, give the basis too: "
                    f"bases=basis.{suggestion(name, known)}"
                )
            layers.setdefault(match["by"] or "layer", []).append(layer)
    surveys += [(by, find_intervention_sites(run, list(dict.fromkeys(one)), by, heads)) for by, one in layers.items()]
    known = _named(surveys)
    first = surveys[0][1]
    sites = [site for _, survey in surveys for site in survey.sites]
    left_out = {name: why for _, survey in surveys for name, why in survey.left_out.items()}
    for name in names:
        if name not in known:
            why = next((f" It {reason}." for layer, reason in left_out.items() if name.startswith(layer)), "")
            raise OptionError(f"there is no part {name!r} that can be replaced.{why or suggestion(name, known)}")
    copies = min(survey.copies for _, survey in surveys)
    return SiteSurvey(sites, left_out, first.output, copies), [known[name] for name in names]


def _named(surveys: Sequence[tuple[str, SiteSurvey]]) -> dict[str, Part]:
    """Return the parts of surveys, each with its kind, by name."""
    return {
        part_name(by, part): part
        for by, survey in surveys
        for site in survey.sites
        for part in (Part(site, number) for number in range(site.grid.size))
    }


def _check_difference(start: torch.Tensor, change: torch.Tensor, target: str) -> None:
    """Check that the parts together make a difference.

    Raises:
        TargetError: when they make none.
    """
    size, whole = float(start.abs().max()), float(change.mean())
    if not abs(whole) > 1e-9 * size:
        raise TargetError(
            f"the score {target!r} is {float(start.mean()):.4g}, and changes by {whole:.2g} when all parts are replaced"
            ", so nothing is left or lost. Give a target that they make, such as contrast(a, b), or other values."
        )
    if abs(whole) < max(1e-3 * size, 0.1 * float(change.square().mean().sqrt())):
        warn(
            f"circuit_faithfulness: all parts together hardly change the score ({whole:.3g}), so shares of that are "
            "mostly noise. Give a target in which the inputs differ more.",
        )


def _replacement(
    run: ModelRun, other: Input | None, value: Value, reference: Samples | None
) -> tuple[Replacement, int]:
    if other is None:
        return choose_replacement(run, value, reference, 8)
    if reference is not None:
        raise OptionError("the values of other= replace the parts, so reference= is not used: leave one of them out.")
    source = as_inputs(other)
    check_same_form(run.inputs, source)
    return RecordedValues(run, lambda: [source], [torch.arange(run.batch)]), 1


def _shuffled(parts: Sequence[Any], count: int, seed: int) -> list[list[Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [[parts[place] for place in torch.randperm(len(parts), generator=generator).tolist()] for _ in range(count)]
