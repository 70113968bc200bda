"""The gradient of each layer by itself, and of each operation in it, against finite differences."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from layerlens.analyzers.common.directional_slope import (
    Slope,
    along,
    moved_from_kinks,
    replica,
    slope_of,
)
from layerlens.analyzers.common.float64_twin import InFloat64, as_double
from layerlens.analyzers.common.scorer import Leaves, Scorer, backward_pass
from layerlens.analyzers.graph.cuts import Cuts
from layerlens.analyzers.graph.graph import ACCUMULATE
from layerlens.analyzers.graph.operation import operation
from layerlens.model.borrowed import generator_states, restore_generators
from layerlens.model.layers import Selection
from layerlens.model.tensors import tensors_of
from layerlens.model.trees import map_tensors, named_tensors
from layerlens.probes.probe import Probe
from layerlens.results import LayerGradient

Run = Callable[..., Any]


class Comparison(NamedTuple):
    """Slopes by gradient and by difference, their gap, and the error of the difference, both relative; `(n,)` each."""

    gradient: torch.Tensor
    difference: torch.Tensor
    gap: torch.Tensor
    error: torch.Tensor


class Given(NamedTuple):
    """What a layer or an operation got: arguments, names of tensors that carry a gradient, random generators."""

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    carrying: tuple[str, ...]
    generators: dict[str, Any]

    @classmethod
    def of(cls, arguments: Any) -> Given:
        """Copy the arguments before the call can write into them."""
        carrying = tuple(name for name, value in named_tensors(arguments) if value.requires_grad)
        return cls(map_tensors(arguments, lambda value: replica(value.detach())), carrying, generator_states())

    def tensors(self) -> Leaves:
        """The tensors that carry a gradient, by name."""
        named = dict(named_tensors(self.arguments))
        return {name: named[name] for name in self.carrying}

    def call(self, run: Run, tensors: Mapping[str, torch.Tensor], *, double: bool = False) -> dict[str, torch.Tensor]:
        """Return the outputs of a call with `tensors`, by name; everything it gets is a copy."""
        names = (name for name, _ in named_tensors(self.arguments))

        def exchanged(value: torch.Tensor) -> torch.Tensor:
            new = tensors.get(next(names), value)
            return as_double(new) if double else replica(new)

        args, kwargs = map_tensors(self.arguments, exchanged)
        restore_generators(self.generators)
        with InFloat64() if double else contextlib.nullcontext():
            return tensors_of(run if isinstance(run, nn.Module) else None, run(*args, **kwargs))


def compare(slopes: Leaves, steps: Leaves, difference: Slope, *, batch: int) -> Comparison:
    """Compare gradients along a direction with the difference, relative to the size of such slopes.

    Args:
        slopes: gradients by name.
        steps: directions by name.
        difference: the same slope by differences, `(batch,)`.
        batch: number of samples; 1 takes all as one.
    """
    products = [(slopes[name].double() * steps[name].double()).reshape(batch, -1) for name in slopes]
    gradient = torch.stack([product.sum(dim=1) for product in products]).sum(dim=0)
    typical = torch.stack([product.square().sum(dim=1) for product in products]).sum(dim=0).sqrt()
    value, error = (part.to(gradient.device) for part in difference)
    size = torch.stack([gradient.abs(), value.abs(), typical]).amax(dim=0)
    size = torch.where(size > 0, size, 1.0)
    return Comparison(gradient, value, (gradient - value).abs() / size, error / size)


def layer_gradients(
    scorer: Scorer,
    exact: Scorer | None,
    points: Leaves,
    layers: Selection,
    directions: int,
    tolerance: float,
    draw: torch.Generator,
) -> list[LayerGradient]:
    """Check the selected layers one by one, each call with what it got and the gradient that reached its output.

    Args:
        scorer: scores a borrowed model.
        exact: the same for a copy in float64; None if there is none.
        points: leaves at which to check.
        layers: which layers.
        directions: number of random directions.
        tolerance: largest gap.
        draw: draws the directions.

    Returns:
        What was found, in order of execution; calls that hold no gradient are left out.
    """
    found = []
    chosen = (lambda path, module: True) if layers is None else layers  # the model itself as well
    with Probe(scorer.model, chosen, inputs=Given.of, gradients=True, reduce=lambda output: None) as record:
        score = scorer({name: value.detach().requires_grad_() for name, value in points.items()})
    edges = [edge for call in record.order if call.gradients for edge in call.gradients.edges]
    with backward_pass(scorer.model):
        arrived = list(torch.autograd.grad(score.sum(), edges, allow_unused=True)) if edges else []
    for call in record.order:
        given, names = call.arguments, [] if call.gradients is None else list(call.gradients.found)
        weights = {name: g for name in names if (g := arrived.pop(0)) is not None}
        if not (weights and given.carrying):
            continue
        module = scorer.model.get_submodule(call.layer)
        twin = None if exact is None else exact.model.get_submodule(call.layer)
        check = _Check(given, weights, directions, tolerance, draw)
        gap, error, passed, cause = check.verdict(module, twin)
        if passed is False:
            cause = check.cause(module, twin)
        found.append(LayerGradient(call.layer, call.index, call.type, gap, error, passed, cause))
    return found


class _Check:
    """The check of one call.

    Args:
        given: its arguments.
        weights: gradients of its outputs, by name.
        directions: number of random directions.
        tolerance: largest gap.
        draw: draws the directions.
    """

    def __init__(self, given: Given, weights: Leaves, directions: int, tolerance: float, draw: torch.Generator) -> None:
        self.given, self.weights, self.draw = given, weights, draw
        self.directions, self.tolerance = directions, tolerance

    def verdict(self, run: Run, twin: Run | None) -> tuple[float, float, bool | None, str]:
        """Return the largest gap, its error, whether the gradient is right, and why that is unclear."""
        try:
            found = self._measure(run, twin)
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as problem:
            return float("nan"), float("nan"), None, f"cannot be run by itself: {' '.join(str(problem).split())[:120]}"
        gap, error = (torch.cat(column) for column in list(zip(*found, strict=True))[2:])
        worst = int((gap - error).argmax())
        passed = False if bool((gap > self.tolerance + error).any()) else bool((gap <= self.tolerance).all()) or None
        return float(gap[worst]), float(error[worst]), passed, "" if passed is not None else "differences are too rough"

    def _measure(self, run: Run, twin: Run | None) -> list[Comparison]:
        given, weights = self.given, self.weights
        points = {name: moved_from_kinks(value, self.draw)[0] for name, value in given.tensors().items()}
        slopes = self._gradients(run, points)
        dtype = next(iter(points.values())).dtype if twin is None else torch.float64
        starts = {name: replica(value, dtype) for name, value in points.items()}
        found = []
        for _ in range(self.directions):
            steps = {name: moved_from_kinks(value, self.draw)[1] for name, value in points.items()}

            def weighed(step: float, steps: Leaves = steps) -> torch.Tensor:
                with torch.no_grad():
                    outputs = given.call(twin or run, along(starts, steps, step), double=twin is not None)
                parts = [(outputs[name].double() * weight.double()).sum() for name, weight in weights.items()]
                return torch.stack(parts).sum().reshape(1)

            found.append(compare(slopes, steps, slope_of(weighed, dtype), batch=1))
        return found

    def _gradients(self, run: Run, points: Leaves) -> Leaves:
        with torch.enable_grad():
            leaves = {name: value.requires_grad_() for name, value in points.items()}
            outputs = self.given.call(run, leaves)
            chosen = [name for name in self.weights if outputs[name].requires_grad]
            slopes: Any = [None] * len(leaves)
            if chosen:
                slopes = torch.autograd.grad(
                    [outputs[name] for name in chosen],
                    list(leaves.values()),
                    [self.weights[name].to(outputs[name].dtype) for name in chosen],
                    allow_unused=True,
                )
        pairs = zip(leaves.items(), slopes, strict=True)
        found = {name: torch.zeros_like(value) if slope is None else slope for (name, value), slope in pairs}
        for value in points.values():
            value.requires_grad_(False)
        return found

    def cause(self, run: Run, twin: Run | None) -> str:
        """Say what is wrong: rounding, the operations with a wrong gradient, a cut, or else what the graph holds."""
        if twin is not None and run is not twin:
            given = self.given._replace(arguments=map_tensors(self.given.arguments, as_double))
            weights = {name: weight.double() for name, weight in self.weights.items()}
            if _Check(given, weights, self.directions, self.tolerance, self.draw).verdict(twin, twin)[2]:
                dtype = next(iter(self.given.tensors().values())).dtype
                return f"rounding in {str(dtype).removeprefix('torch.')}: in float64 it is right"
        seen = _Operations()
        leaves = {name: replica(value).requires_grad_() for name, value in self.given.tensors().items()}
        with torch.enable_grad(), seen:
            outputs = self.given.call(run, leaves)
        chosen = [name for name in self.weights if name in outputs and outputs[name].grad_fn is not None]
        edges = [edge for one in seen.calls for edge in one.edges.values()]
        arrived: list[torch.Tensor | None] = [None] * len(edges)
        if edges and chosen:
            arrived = list(
                torch.autograd.grad(
                    [outputs[name] for name in chosen], edges, [self.weights[name] for name in chosen],
                    allow_unused=True, retain_graph=True,
                )
            )  # fmt: skip
        wrong: dict[str, None] = {}
        for one in seen.calls:
            weights = {name: g for name in one.edges if (g := arrived.pop(0)) is not None}
            check = _Check(one.given, weights, self.directions, self.tolerance, self.draw)
            if weights and check.verdict(one.function, None if twin is None else one.function)[2] is False:
                wrong[one.function.__name__] = None
        if wrong:
            return f"the backward pass of {', '.join(wrong)}"
        if seen.cuts.found or seen.cuts.left:
            ways = {cut.how: None for cut in seen.cuts.found.values()} or {how: None for how, _ in seen.cuts.left}
            return f"a signal is cut by {', '.join(ways)}"
        return f"the backward pass of {' or '.join(_nodes(outputs[name] for name in chosen))}"


class _Operation(NamedTuple):
    """One call of a function of torch, with the gradient edges of its outputs."""

    function: Callable[..., Any]
    given: Given
    edges: dict[str, Any]


class _Operations(TorchFunctionMode):
    """Keep the calls of functions of torch that carry a gradient, and what cuts a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Operation] = []
        self.cuts = Cuts(lambda tensor: tensor.requires_grad and (tensor.is_leaf or tensor.grad_fn is not None), str)

    def __torch_function__(
        self, function: Callable[..., Any], kinds: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = Given.of((args, kwargs))
        result = function(*args, **kwargs)
        self.cuts.see(function, args, kwargs, result)
        made = {name: value for name, value in tensors_of(None, result).items() if value.grad_fn is not None}
        if made and given.carrying and not getattr(function, "__name__", "__").startswith("__get"):
            edges = {name: torch.autograd.graph.get_gradient_edge(value) for name, value in made.items()}
            self.calls.append(_Operation(function, given, edges))
        return result


def _nodes(outputs: Iterator[torch.Tensor]) -> list[str]:
    """The names of the operations between outputs and leaves, without those that only move numbers."""
    pending: list[Any] = [value.grad_fn for value in outputs]
    seen = set(pending)
    names: dict[str, None] = {}
    while pending:
        node = pending.pop()
        if node.name() != ACCUMULATE:
            names[operation(node.name())] = None
        fresh = {child for child, _ in node.next_functions if child is not None and child not in seen}
        seen |= fresh
        pending += fresh
    return [name for name in names if name not in ("Clone", "View", "Alias", "CopyBackwards")] or ["the layer"]
