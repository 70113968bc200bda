"""The route of each sample through a model whose structure depends on its input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import nn

from layerlens.analyzers.common.samples import or_none
from layerlens.axes.batch_axis import check_batch_axis
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed, generator_states, restore_generators
from layerlens.model.layers import Selection
from layerlens.probes.probe import Probe
from layerlens.progress import track
from layerlens.results import RouteComparison, Routes
from layerlens.signatures import public


@public
def route(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Routes:
    """List the layers that ran for each sample, in order: its exit, its experts, its number of steps.

    A batch takes one route, so the samples are run one by one, after one run of all, without gradients and in eval
    mode. An expert counts as run when the model calls it, even on no token; experts whose weights are stacked in one
    module, as in recent versions of transformers, are one layer.

    Raises:
        InputError: when the rows of the input are places of one sample.
        LayerNotFound: when the selection matches no layer.

    Example:
        >>> route(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(3, 2)).calls[0]
        ('0', '1')
    """
    inputs = as_inputs(x)
    routes = []
    with borrowed(model, grad=False):
        if inputs.batch > 1:
            states = generator_states()
            output = or_none(lambda: inputs.run(model, forward))  # the model may take one sample at a time
            check_batch_axis(model, inputs, forward, output)
            restore_generators(states)
        for row in track(range(inputs.batch), "routes"):
            with Probe(model, layers, reduce=lambda output: None) as record:
                inputs.rows(torch.tensor([row])).run(model, forward)
            routes.append(tuple(call.layer for call in record.order))
    return Routes(type(model).__name__, tuple(routes))


@public
def compare_routes(first: Routes, second: Routes) -> RouteComparison:
    """Compare the routes of two groups of samples.

    Args:
        first: routes of one or more samples.
        second: routes of others through the same model.

    Raises:
        OptionError: when one is empty, or belongs to another model.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> compare_routes(route(net, torch.ones(1, 2)), route(net, torch.zeros(1, 2)))
        RouteComparison(routes: the same)
    """
    for given in (first, second):
        if not isinstance(given, Routes) or not given.calls:
            raise OptionError(f"compare_routes takes two results of route with samples in them, got {given!r}.")
    if first.model != second.model:
        raise OptionError(f"the routes are of a {first.model} and of a {second.model}; compare routes of one model.")
    one, two = _mean_counts(first), _mean_counts(second)
    every = [*first.calls, *second.calls]
    shared = _shared_start(every)
    same = _shares(first) == _shares(second)
    return RouteComparison(
        only_first=tuple(path for path in one if path not in two),
        only_second=tuple(path for path in two if path not in one),
        counts={path: (one[path], two[path]) for path in one if path in two and one[path] != two[path]},
        parting=None if same else shared,
        after="" if same or not shared else every[0][shared - 1],
    )


def _shares(routes: Routes) -> dict[tuple[str, ...], Fraction]:
    """Return the share of the samples that took each route."""
    return {calls: Fraction(len(samples), len(routes)) for calls, samples in routes.groups.items()}


def _mean_counts(routes: Routes) -> dict[str, float]:
    total: Counter[str] = Counter()
    for calls in routes.calls:
        total.update(calls)
    return {path: count / len(routes) for path, count in total.items()}


def _shared_start(every: list[tuple[str, ...]]) -> int:
    """Return the number of calls that all routes share at their start."""

    def equal() -> Iterator[bool]:
        return (len(set(calls)) == 1 for calls in zip(*every, strict=False))

    return next((place for place, same in enumerate(equal()) if not same), min(map(len, every)))
