"""Evaluate: many maps by many metrics, sample by sample, next to controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.held_inputs import held_input
from layerlens.analyzers.common.samples import said_once
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import InputError, OptionError, check_seed, choose, warn
from layerlens.inputs.batches import Labels, per_sample
from layerlens.inputs.inputs import Forward, Hold, Input, Inputs
from layerlens.model.borrowed import borrowed
from layerlens.progress import track
from layerlens.results import Attribution, Leaderboard
from layerlens.signatures import public
from layerlens.targets.target import Spec, Target, as_target

from .controls import control_maps
from .explaining import Explain, as_explain, control_explain
from .metrics.insertion_deletion import Measure
from .metrics.place_ranks import Map
from .metrics.table import METRICS, Setting

DEFAULT = ("insertion", "deletion")
LOCALIZATION = ("pointing_game", "relevance_mass", "relevance_rank")

Entry: TypeAlias = "Map | str | Explain"
"""A map, the name of a saliency method, or a function that explains."""


@public
def evaluate(
    model: nn.Module,
    x: Input,
    attributions: Mapping[str, Entry] | Sequence[str | Attribution] | Attribution | str,
    *,
    target: Spec = None,
    metrics: Sequence[str] | str | None = None,
    fills: Sequence[Baseline] | str | None = None,
    masks: torch.Tensor | None = None,
    groups: Labels | None = None,
    steps: int = 32,
    measure: Measure = "auto",
    controls: bool = True,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    hold: Hold = None,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Leaderboard:
    """Measure which maps are faithful to the model: a leaderboard with intervals, paired differences and controls.

    By default by the areas under insertion and deletion (Petsiuk, Das & Saenko 2018) and the first less the second. A
    fill that is also a method's baseline flatters that method, so images get two fills. A map below its controls says
    little.

    Args:
        x: ... Intervals are over its samples.
        attributions: by name, each an `Attribution` or values of x, see `insertion`, the name of a saliency method, or
            a function `(model, x, target=..., forward=...) -> Attribution`; or a sequence of names of methods; or one.
        metrics: names out of `METRICS`; None for insertion and deletion, and with masks for those of localization.
        fills: what removed places become, each as `baseline` in `integrated_gradients`; None for the mean color and a
            blur of images, zero for anything else.
        masks: ... For the metrics of localization.
        groups: which samples belong together (crops of a picture, frames of a video), a name or number for each;
            intervals are then over groups. None where each sample counts by itself.
        steps: number of steps of the curves.
        controls: whether random, edge and center maps take part (random and size, or place, where x is not an image;
            random alone where it is several inputs).

    Returns:
        A `Leaderboard`, methods sorted by its first metric.

    Raises:
        InputError: when a map does not fit the input, or there is not one group for each sample.
        OptionError: when a metric is unknown, or lacks what it needs.
        TargetError: when the target does not fit the output.

    Warns:
        UserWarning: when an attribution has another target, or there is one sample, or one group, and so no interval.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> board = evaluate(model, torch.randn(4, 6), ["integrated_gradients", "gradient"], target=0)
        >>> board.metrics
        ('insertion - deletion', 'insertion (zero)', 'deletion (zero)')
    """
    check_seed(seed)
    names = _metrics(metrics, masks is not None)
    inputs = held_input(model, x, hold, forward)
    with borrowed(model, grad=False):
        scorer = Scorer(model, inputs, as_target(target), forward=forward)
        with torch.no_grad():
            scorer({name: leaf.value for name, leaf in scorer.leaves.items()})  # the predicted class is chosen here
    inputs = inputs.holding([name for name in inputs.tensors() if name not in scorer.leaves])
    aim = scorer.target
    batch = len(scorer.rows)
    group_names = None if groups is None else tuple(map(str, per_sample("groups", groups, batch)))
    if batch == 1 or (group_names is not None and len(set(group_names)) == 1):
        warn(
            f"one {'sample' if batch == 1 else 'group'} gives no interval: a difference between methods may be chance."
        )
    with said_once() as passes:
        maps, functions = _maps(model, inputs, attributions, aim, forward)
        own = control_maps(scorer.leaves, seed) if controls else {}
        for name, control in own.items():
            if name in maps:
                raise OptionError(f"a method is called {name!r}, as a control is: rename it, or give controls=False.")
            maps[name] = control if len(control) > 1 else next(iter(control.values()))
            functions[name] = control_explain(name, seed)
        if fills is None:
            images = all(leaf.is_input and leaf.value.ndim == 4 for leaf in scorer.leaves.values())
            fills = ("mean", "blur") if images else ("zero",)
        fills = (fills,) if isinstance(fills, str) else fills
        setting = Setting(model, inputs, aim, tuple(fills), masks, steps, measure, seed, batch_size, forward, functions)
        columns, higher, values = _scores(names, setting, maps)
    order = values[:, 0].mean(dim=1).argsort(descending=higher[0], stable=True).tolist()
    methods = list(maps)
    return Leaderboard(
        methods=tuple(methods[row] for row in order),
        metrics=tuple(columns),
        values=values[order],
        higher=tuple(higher),
        controls=tuple(own),
        target=aim.label,
        settings={"fills": [str(fill) for fill in fills], "steps": steps, "measure": measure, "seed": seed, **passes},
        groups=group_names,
    )


def _metrics(metrics: Sequence[str] | str | None, masked: bool) -> tuple[str, ...]:
    """Return the names of the metrics.

    Raises:
        OptionError: when one is unknown, or lacks its masks.
    """
    metrics = (metrics,) if isinstance(metrics, str) else metrics
    names = tuple(metrics) if metrics is not None else DEFAULT + LOCALIZATION * masked
    for metric in names:
        if METRICS[choose("metric", metric, METRICS)].needs == "masks" and not masked:
            raise OptionError(f"metric {metric!r} needs masks=, which say where the object is.")
    return names


def _scores(
    names: tuple[str, ...], setting: Setting, maps: dict[str, Map]
) -> tuple[list[str], list[bool], torch.Tensor]:
    """Return columns, whether more is better in each, and their values, `(maps, columns, batch)`."""
    columns = [column for name in names for column in METRICS[name].columns(name, setting)]
    higher = [METRICS[name].higher for name in names for _ in METRICS[name].columns(name, setting)]
    rows = []
    for method in track(maps, "evaluate"):
        row = [column for name in names for column in METRICS[name].values(setting, maps[method], method)]
        rows.append(torch.stack([column.double().cpu() for column in row]))
    values = torch.stack(rows)
    if {"insertion", "deletion"} <= set(names):
        insertion, deletion = (
            values[:, [column.startswith(part) for column in columns]].mean(dim=1) for part in ("insertion", "deletion")
        )
        values = torch.cat([(insertion - deletion).unsqueeze(1), values], dim=1)
        columns, higher = ["insertion - deletion", *columns], [True, *higher]
    return columns, higher, values


def _maps(
    model: nn.Module,
    inputs: Inputs,
    attributions: Mapping[str, Entry] | Sequence[str | Attribution] | Attribution | str,
    target: Target,
    forward: Forward | None,
) -> tuple[dict[str, Map], dict[str, Explain]]:
    """Return the maps by name, and the functions of those that were not given as maps.

    Raises:
        InputError: when there are none.
    """
    if isinstance(attributions, (str, Attribution)):
        attributions = [attributions]
    if not isinstance(attributions, Mapping):
        attributions = {one.how if isinstance(one, Attribution) else str(one): one for one in attributions}
    if not attributions:
        raise InputError("there is nothing to evaluate: give maps or names of methods.")
    maps: dict[str, Map] = {}
    functions: dict[str, Explain] = {}
    for name, entry in attributions.items():
        if isinstance(entry, str):
            functions[name] = as_explain(entry, {})
        elif callable(entry) and not isinstance(entry, (Attribution, torch.Tensor)):
            functions[name] = entry
        else:
            maps[name] = entry
            if isinstance(entry, Attribution) and entry.target != target.label:
                warn(f"the map {name!r} explains {entry.target!r}, and is compared with {target.label!r}.")
        if name in functions:
            maps[name] = functions[name](model, inputs, target=target, forward=forward)
    return maps, functions
