"""Evaluate: many maps by many metrics, sample by sample, beside controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.scorer import Scorer
from layerlens.analyzers.saliency.saliency import saliency
from layerlens.errors import InputError, OptionError, check_seed, choose, warn
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.progress import track
from layerlens.results import Attribution, Leaderboard
from layerlens.targets.target import Spec, as_target

from .controls import control_maps
from .metrics.input_places import Given
from .metrics.table import METRICS, Trial

DEFAULT = ("insertion", "deletion")
Entry = Given | str


def evaluate(
    model: nn.Module,
    x: Input,
    attributions: Mapping[str, Entry] | Sequence[str] | Attribution | str,
    *,
    target: Spec = None,
    metrics: Sequence[str] | None = None,
    fills: Sequence[Any] | None = None,
    masks: torch.Tensor | None = None,
    groups: Sequence[Any] | None = None,
    steps: int = 32,
    measure: str = "auto",
    controls: bool = True,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
) -> Leaderboard:
    """Which map is faithful to the model: a leaderboard with intervals, paired differences and controls.

    By default by the areas under insertion and deletion (Petsiuk, Das & Saenko 2018) and the first less the second. A
    fill that is also a method's baseline flatters that method, so images get two fills. A map below its controls says
    little.

    Args:
        model: any module.
        x: its input, `(batch, ...)`; intervals are over its samples.
        attributions: by name, each an `Attribution` or values of x, see `insertion`, the name of a saliency method, or
            a function `(model, x, target=..., forward=...) -> Attribution`; or a sequence of names of methods; or one.
        target: what to score, as in `layerlens.as_target`; None is the predicted class.
        metrics: names out of `METRICS`; None for insertion and deletion, and with masks for those of localization.
        fills: what stands in removed places, each as `baseline` in `integrated_gradients`; None for the mean colour and
            a blur of images, zero for anything else.
        masks: where the object is, bool `(batch, *places)`, for the metrics of localization.
        groups: which samples are alike (crops of a picture, frames of a film), a name or number for each; intervals are
            then over groups. None where each sample stands for itself.
        steps: of the curves.
        measure: as in `insertion`.
        controls: whether random, edge and centre maps take part (random and size, or place, where x is no image;
            random alone where it is several inputs).
        seed: of everything random.
        batch_size: rows in one forward pass.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `Leaderboard`, methods sorted by its first metric.

    Raises:
        InputError: when a map does not fit the input, or there is not one group for each sample.
        OptionError: when a metric is unknown, or lacks what it needs.
        TargetError: when the target does not fit the output.

    Warns:
        UserWarning: when an attribution is of another target, or there is one sample, or one group, and so no interval.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> board = evaluate(model, torch.randn(4, 6), ["integrated_gradients", "gradient"], target=0)
        >>> board.metrics
        ('insertion - deletion', 'insertion (zero)', 'deletion (zero)')
    """
    check_seed(seed)
    names = tuple(metrics) if metrics is not None else DEFAULT
    if metrics is None and masks is not None:
        names += ("pointing_game", "relevance_mass", "relevance_rank")
    for metric in names:
        if METRICS[choose("metric", metric, METRICS)].needs == "masks" and masks is None:
            raise OptionError(f"metric {metric!r} needs masks=, which say where the object is.")
    inputs = as_inputs(x)
    with borrowed(model, grad=False):
        scorer = Scorer(model, inputs, as_target(target), forward=forward)
        with torch.no_grad():
            scorer({name: leaf.value for name, leaf in scorer.leaves.items()})
    aim = scorer.target
    alike = _groups(groups, len(scorer.rows))
    if len(scorer.rows) == 1 or (alike is not None and len(set(alike)) == 1):
        what = "sample" if len(scorer.rows) == 1 else "group"
        warn(f"one {what} gives no interval: a difference between methods may be chance.")
    given, functions = _maps(model, inputs, attributions, aim, forward)
    own = control_maps(scorer.leaves, seed) if controls else {}
    for name, control in own.items():
        if name in given:
            raise OptionError(f"a method is called {name!r}, as a control is: rename it, or give controls=False.")
        given[name] = control if len(control) > 1 else next(iter(control.values()))
    if fills is None:
        images = all(leaf.is_input and leaf.value.ndim == 4 for leaf in scorer.leaves.values())
        fills = ("mean", "blur") if images else ("zero",)
    trial = Trial(model, inputs, aim, tuple(fills), masks, steps, measure, seed, batch_size, forward, functions)
    columns = [column for metric in names for column in METRICS[metric].columns(metric, trial)]
    rows = []
    for name in track(given, "evaluate"):
        found = [values for metric in names for values in METRICS[metric].values(trial, given[name], name)]
        rows.append(torch.stack([values.double().cpu() for values in found]))
    values = torch.stack(rows)
    higher = [METRICS[metric].higher for metric in names for _ in METRICS[metric].columns(metric, trial)]
    if {"insertion", "deletion"} <= set(names):
        areas = [
            values[:, [column.startswith(part) for column in columns]].mean(dim=1) for part in ("insertion", "deletion")
        ]
        values = torch.cat([(areas[0] - areas[1]).unsqueeze(1), values], dim=1)
        columns, higher = ["insertion - deletion", *columns], [True, *higher]
    order = values[:, 0].mean(dim=1).argsort(descending=higher[0], stable=True).tolist()
    methods = list(given)
    return Leaderboard(
        methods=tuple(methods[row] for row in order),
        metrics=tuple(columns),
        values=values[order],
        higher=tuple(higher),
        controls=tuple(own),
        target=aim.label,
        settings={"fills": [str(fill) for fill in fills], "steps": steps, "measure": measure, "seed": seed},
        groups=alike,
    )


def _groups(groups: Sequence[Any] | None, count: int) -> tuple[str, ...] | None:
    """The group of each sample by name."""
    if groups is None:
        return None
    given = groups.tolist() if isinstance(groups, torch.Tensor) else list(groups)
    if len(given) != count:
        raise InputError(f"groups= names {len(given)} group(s) for {count} sample(s): give one for each.")
    return tuple(map(str, given))


def _maps(
    model: nn.Module, inputs: Any, attributions: Any, aim: Any, forward: Any
) -> tuple[dict[str, Any], dict[str, Callable[..., Attribution]]]:
    """The maps by name, and the functions of those that were not given as maps."""
    if isinstance(attributions, (str, Attribution)):
        attributions = [attributions]
    if not isinstance(attributions, Mapping):
        attributions = {one.how if isinstance(one, Attribution) else str(one): one for one in attributions}
    if not attributions:
        raise InputError("there is nothing to evaluate: give maps or names of methods.")
    given: dict[str, Any] = {}
    functions: dict[str, Callable[..., Attribution]] = {}
    for name, entry in attributions.items():
        if isinstance(entry, str):
            functions[name] = lambda *args, method=entry, **options: saliency(*args, method=method, **options)
        elif callable(entry) and not isinstance(entry, (Attribution, torch.Tensor)):
            functions[name] = entry
        else:
            given[name] = entry
            if isinstance(entry, Attribution) and entry.target != aim.label:
                warn(f"the map {name!r} explains {entry.target!r}, and is held against {aim.label!r}.")
        if name in functions:
            given[name] = functions[name](model, inputs, target=aim, forward=forward)
    return given, functions
