"""The route that each sample takes through a model whose structure depends on its input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import nn

from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.probes.probe import Probe
from layerlens.progress import track
from layerlens.results import RouteComparison, Routes


def route(model: nn.Module, x: Input, layers: Selection = None, *, forward: Forward | None = None) -> Routes:
    """Which layers ran for each sample, in order: the exit that it took, the experts that it met, the steps it needed.

    A batch takes one route, so the samples are run one by one: as many forward passes as samples, without gradients
    and in eval mode. An expert counts as run when the model calls it, also on no token; experts whose weights are
    stacked in one module, as in recent versions of transformers, are one layer and are not told apart.

    Args:
        model: any module.
        x: its input, `(batch, ...)`.
        layers: which layers to follow; None for all.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Raises:
        LayerNotFound: when the selection matches no layer.

    Example:
        >>> route(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(3, 2)).calls[0]
        ('0', '1')
    """
    inputs = as_inputs(x)
    found = []
    with borrowed(model, grad=False):
        for row in track(range(inputs.batch), "routes"):
            with Probe(model, layers, reduce=lambda output: None) as record:
                inputs.rows(torch.tensor([row])).run(model, forward)
            found.append(tuple(call.layer for call in record.order))
    return Routes(type(model).__name__, tuple(found))


def compare_routes(first: Routes, second: Routes) -> RouteComparison:
    """Where the routes of two groups of samples differ.

    Args:
        first: of one sample or several.
        second: likewise, of the same model.

    Raises:
        OptionError: when one is empty, or of another model.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> compare_routes(route(net, torch.ones(1, 2)), route(net, torch.zeros(1, 2)))
        RouteComparison(routes: the same)
    """
    for given in (first, second):
        if not isinstance(given, Routes) or not given.calls:
            raise OptionError(f"compare_routes takes two results of route with samples in them, got {given!r}.")
    if first.model != second.model:
        raise OptionError(f"the routes are of a {first.model} and of a {second.model}; take two of one model.")
    one, two = _mean_counts(first), _mean_counts(second)
    every = [*first.calls, *second.calls]
    shared = _shared(every)
    same = _shares(first) == _shares(second)
    return RouteComparison(
        only_first=tuple(path for path in one if path not in two),
        only_second=tuple(path for path in two if path not in one),
        counts={path: (one[path], two[path]) for path in one if path in two and one[path] != two[path]},
        parting=None if same else shared,
        after="" if same or not shared else every[0][shared - 1],
    )


def _shares(routes: Routes) -> dict[tuple[str, ...], Fraction]:
    """Route -> the share of the samples that took it."""
    return {calls: Fraction(len(samples), len(routes)) for calls, samples in routes.groups.items()}


def _mean_counts(routes: Routes) -> dict[str, float]:
    total: Counter[str] = Counter()
    for calls in routes.calls:
        total.update(calls)
    return {path: count / len(routes) for path, count in total.items()}


def _shared(every: list[tuple[str, ...]]) -> int:
    """How many calls all have in common at their start."""

    def equal() -> Iterator[bool]:
        return (len(set(calls)) == 1 for calls in zip(*every, strict=False))

    return next((place for place, same in enumerate(equal()) if not same), min(map(len, every)))
