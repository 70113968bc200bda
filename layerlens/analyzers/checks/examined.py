"""What is examined: a model, an input, a target and a method, with what several checks need of them."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from layerlens.analyzers.common.features.coalitions import Coalitions
from layerlens.analyzers.common.features.input_features import Features, features_of
from layerlens.analyzers.common.float64_twin import double_twin
from layerlens.analyzers.common.leaves.leaves import spread_axes
from layerlens.analyzers.common.null_model import shuffled
from layerlens.analyzers.common.registry import METHODS
from layerlens.analyzers.common.scorer import Leaves, Scorer, gradients
from layerlens.analyzers.common.statistics import spearman
from layerlens.analyzers.faithfulness.explaining import Explain, as_explain
from layerlens.analyzers.faithfulness.metrics.place_ranks import by_place
from layerlens.analyzers.saliency.auto import choose_method
from layerlens.analyzers.saliency.saliency import cost_with
from layerlens.inputs.inputs import Forward
from layerlens.model.layers import Selection
from layerlens.model.trees import named_tensors
from layerlens.results import Attribution, GradientCheck, Matrix

Found: TypeAlias = tuple[str, ...]
"""Severity, what was measured, what it means, what to do; the last two may be left out."""

FEATURES = 4
"""Fewest features whose ranks are compared."""

GROUPS = 32
"""Most groups of features that are left out one by one."""


class Counted:
    """A `forward` that counts its runs, in runs of the batch.

    Two of the same function are equal, so that what was followed through one run is known in the next.

    Args:
        forward: `forward(model, *args, **kwargs)` to call instead of the model.
        batch: number of samples in the batch.
        model: the model.
    """

    def __init__(self, forward: Forward | None, batch: int, model: nn.Module) -> None:
        self.forward, self.batch, self.passes = forward, batch, 0.0
        self.__wrapped__ = type(model).forward if forward is None else forward  # its signature, for errors

    def __call__(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        sizes = [tensor.shape[0] for _, tensor in named_tensors((args, kwargs)) if tensor.ndim]
        self.passes += sizes[0] / self.batch if sizes else 1
        return model(*args, **kwargs) if self.forward is None else self.forward(model, *args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counted) and other.forward == self.forward

    def __hash__(self) -> int:
        return hash((Counted, self.forward))


class Examined:
    """A model, an input, a target and a method; what several checks need is computed once.

    Args:
        scorer: scores a borrowed model; its first run is done.
        counted: its `forward`.
        method: a method of attribution by name, or a function.
        options: options of the method.
        seed: seed of random draws.
        training: modules that were in train mode.
        hung: hooks that hung on the model, see `of_model.hung`.
    """

    def __init__(
        self, scorer: Scorer, counted: Counted, method: str | Explain, options: Mapping[str, Any], seed: int,
        training: Sequence[nn.Module] = (), hung: Sequence[Any] = (),
    ) -> None:  # fmt: skip
        self.scorer, self.counted, self.seed, self.training = scorer, counted, seed, training
        self.method, self.options, self.hung = method, options, list(hung)
        self.model, self.inputs, self.target = scorer.model, scorer.inputs, scorer.target
        self.layers: Selection = ()
        self.gradient: GradientCheck | None = None
        self.agreement: Matrix | None = None
        self._explained: float | None = None

    @property
    def values(self) -> Leaves:
        """The leaves as they are."""
        return self.scorer.values()

    @property
    def scale(self) -> torch.Tensor:
        """The size of a score, `(batch,)`."""
        return self.score.abs().clamp_min(1e-12)

    def run(self, values: Leaves | None = None) -> torch.Tensor:
        """Return the scores `(batch,)`, in float64: of the leaves as they are, or each of its own changed sample."""
        with torch.no_grad():
            scores = self.scorer(self.values) if values is None else self.scorer(values, self.scorer.rows)
        return scores.detach().double()

    def runs(self) -> int:
        """Return how many runs a changed batch takes: one for each sample, where samples influence each other."""
        return len(self.score) if self.scorer.interacting else 1

    @functools.cached_property
    def noise(self) -> float:
        """How far two runs of the same input differ, relative to the score."""
        return float(((self.run() - self.run()).abs() / self.scale).max())

    @functools.cached_property
    def differentiable(self) -> bool:
        """Whether every leaf can have a gradient."""
        return all(leaf.value.is_floating_point() for leaf in self.scorer.leaves.values())

    @functools.cached_property
    def slopes(self) -> Leaves:
        """The gradient of each score by the leaves."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gradients(self.scorer, self.values)[1]

    @functools.cached_property
    def twin(self) -> tuple[Scorer | None, str]:
        """The same in float64, or why there is none."""
        return double_twin(self.scorer)

    @functools.cached_property
    def groups(self) -> Features:
        """Columns, tokens or cells, at most `GROUPS` groups of them."""
        found = features_of(self.scorer)
        if found.count <= GROUPS:
            return found
        merged = {n: torch.where(one < 0, one, one * GROUPS // found.count) for n, one in found.labels.items()}
        return Features(merged, GROUPS)

    @functools.cached_property
    def places(self) -> Features:
        """Pixels, columns, tokens or steps."""
        return features_of(self.scorer, "places")

    @functools.cached_property
    def coalitions(self) -> Coalitions:
        """The score of a part of the input; the rest is zero, for pictures and series the mean of each channel."""
        spread = all(len(spread_axes(leaf)) and self.places.count > 1 for leaf in self.scorer.leaves.values())
        return Coalitions(self.scorer, "mean" if spread else "zero")

    @functools.cached_property
    def effects(self) -> torch.Tensor:
        """What leaving out each group changes, `(batch, groups)`."""
        without = self.coalitions.features(self.groups, 1 - torch.eye(self.groups.count), "leaving out")
        return (self.score - without.double()).T

    def of_groups(self, values: Any, features: Features | None = None) -> torch.Tensor:
        """Sum a map, or tensors shaped like the leaves, over groups of features, `(batch, groups)`."""
        return by_place(self.scorer, features or self.groups, values)

    @functools.cached_property
    def slope_times_change(self) -> Leaves:
        """The gradient times what leaving out changes."""
        return {n: self.slopes[n] * (self.values[n] - start) for n, start in self.coalitions.starts.items()}

    @functools.cached_property
    def score(self) -> torch.Tensor:
        """The score of each sample, `(batch,)`, in float64."""
        return self.run()

    # -- the method ----------------------------------------------------------------------------------------------------

    def explain(
        self, forward: Forward | None = None, method: str | Explain | None = None, **changes: Any
    ) -> Attribution:
        """Return the map of the method, or of another one, with other options or another `forward`."""
        options = self.options if method is None else {}
        explain = as_explain(method or self.method, {**options, **changes})
        return explain(self.model, self.inputs, target=self.target, forward=forward or self.counted)

    @functools.cached_property
    def attribution(self) -> Attribution:
        """The map of the method."""
        before = self.counted.passes
        found = self.explain()
        self._explained = self.counted.passes - before
        return found

    @functools.cached_property
    def chosen(self) -> tuple[str, dict[str, Any]]:
        """Name and options of the method, where it is one of ours; what `"auto"` would take, else."""
        if self.method != "auto":
            return str(self.method), dict(self.options)
        choice = choose_method(self.model, self.inputs, target=self.target, forward=self.counted)
        return choice.name, choice.options

    def expected(self) -> float:
        """Passes of one map: as measured, or else as published for the method."""
        if self._explained is not None:
            return self._explained
        name, options = self.chosen
        row = METHODS.get(name)
        if row is None:
            return 1.0
        text = cost_with(row.passes, options)
        number = re.search(r"\d+", text)
        count = float(number.group()) if number else 1.0
        return count * (features_of(self.scorer).count if re.search(r"(a|per) (feature|token)", text) else 1)

    @functools.cached_property
    def map(self) -> torch.Tensor:
        """The map by place, `(batch, places)`."""
        return self.of_groups(self.attribution, self.places)

    @functools.cached_property
    def random_map(self) -> torch.Tensor:
        """The map of the model with the entries of its weights in random order, by place."""
        from_random = self.explain(forward=shuffled_weights(self))
        return self.of_groups(from_random, self.places)


def shuffled_weights(examined: Examined) -> Forward:
    """Return a `forward` of the model with the entries of each of its weights in random order."""
    return shuffled(examined.model, examined.counted, examined.seed)


def similar(first: torch.Tensor, second: torch.Tensor) -> tuple[float, float]:
    """Return the rank correlation of two maps `(batch, n)`, and of their sizes, means over samples."""
    return float(spearman(first, second).mean()), float(spearman(first.abs(), second.abs()).mean())


def percent(share: float) -> str:
    """Return a share as text."""
    return f"{100 * share:.3g} %"


def named(names: list[str], most: int = 4) -> str:
    """Return the first names as text."""
    shown = ", ".join(name or "(model)" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


@dataclasses.dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: short name.
        claim: what is checked.
        run: what it found.
        passes: how many passes it is expected to take.
        mapped: whether it needs the map of the method.
        still: whether it compares runs, and so needs a model that draws no random numbers.
        left_out: whether it needs the score without each group of features.
    """

    name: str
    claim: str
    run: Callable[[Examined], Found]
    passes: Callable[[Examined], float]
    mapped: bool = False
    left_out: bool = False
    still: bool = False


def planned(checks: Sequence[Check], examined: Examined) -> float:
    """Return how many passes some checks are expected to take; what was computed before costs nothing."""
    total = sum(one.passes(examined) for one in checks)
    if any(one.mapped for one in checks) and "attribution" not in vars(examined):
        total += examined.expected()
    if any(one.left_out for one in checks) and "effects" not in vars(examined):
        total += examined.groups.count + 2
    return math.ceil(total)


def of_the_map(passes: float) -> Callable[[Examined], float]:
    """Return the cost of so many more maps of the method."""
    return lambda examined: passes * examined.expected()


def constant(passes: float) -> Callable[[Examined], float]:
    """Return a cost that depends on nothing."""
    return lambda examined: passes
