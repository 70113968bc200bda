"""How groups of samples differ: in what layers hold, and in where the model looks."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import torch

from layerlens.errors import OptionError, choose, need
from layerlens.model.trees import as_array

from ..base import Result
from ..values.layer_profile import LayerProfile

LEVEL = 0.05
"""Chance of one false finding anywhere in a family of tests."""

SAME = 1e-4
"""Relative difference below which two effects differ by the rounding of float32 alone."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GroupEffects(Result):
    """The differences between groups in many quantities: the units of a layer, or the places of an attribution.

    Attributes:
        what: what is compared.
        axes: names of the axes after the first: `("unit",)`, `("height", "width")`, ...
        contrasts: what the first axis is: `"a - b"`, or `"a - rest"` where there are more than two groups; with
            `"(label 3)"` after it where it is about samples of that label alone.
        means: means of the contrast's group and of what it is compared with, `(contrasts, 2, *shape)` float64.
        difference: difference of the means, within the strata, `(contrasts, *shape)`.
        effect: Hedges' g: the difference in standard deviations within groups, corrected for small samples. Where
            nothing varies within the groups, a number of some thousand stands for infinity.
        error: standard error of `effect`.
        p: by permutation, corrected for every quantity of the family (all units of all layers; all places).
        null: the |effect| that the largest of these quantities exceeds in 5 % of the permutations, one per contrast.
        units: units of the means and the difference.
        features: names of the quantities of a table, where they are known.
    """

    what: str
    axes: tuple[str, ...]
    contrasts: tuple[str, ...]
    means: torch.Tensor
    difference: torch.Tensor
    effect: torch.Tensor
    error: torch.Tensor
    p: torch.Tensor
    null: torch.Tensor
    units: str
    features: tuple[str, ...] = ()

    def found(self, level: float = LEVEL) -> torch.Tensor:
        """Where the groups differ with p <= level, bool like `p`."""
        return self.p <= level

    def peak(self, contrast: int = 0) -> tuple[int, ...]:
        """The place, or unit, with the largest |effect|.

        Args:
            contrast: which one.
        """
        sizes = self.effect[contrast].abs()
        return tuple(int(index) for index in torch.unravel_index(sizes.argmax(), sizes.shape))

    def numpy(self) -> Any:
        """The effects, `(contrasts, *shape)`, as a numpy array."""
        return as_array(self.effect)

    def summary(self) -> list[tuple[str, str]]:
        """What was compared, how much of it differs, and the largest effect."""
        shape = " x ".join(map(str, self.p.shape[1:]))
        rows = [("of", self.what), ("quantities", f"{shape} ({', '.join(self.axes)})")]
        for row, contrast in enumerate(self.contrasts):
            at = (row, *self.peak(row))
            line = f"{int(self.found()[row].sum())} with p <= {LEVEL:g}; largest effect {self.effect[at]:+.2f}"
            place = self.features[at[1]] if self.features else at[1:]
            rows.append((contrast, f"{line} at {place}, p = {self.p[at]:.3g}"))
        return rows


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GroupComparison(Result):
    """How groups of samples differ, layer by layer and over the input.

    Attributes:
        groups: their names.
        counts: samples in each that were compared.
        activations: call of a layer -> the effects on its units, means over places.
        attributions: name of an input -> the effects on its places, in shares of a sample's |attribution|; empty when
            no attribution was asked for.
        separation: how well a linear readout of each layer distinguishes the groups on samples it was not fitted to, as
            the area under the ROC curve, with what 95 % of the permutations stay below.
        left_out: layer -> why it could not be compared.
        target: what was attributed.
        method: how.
        settings: every option as used.
    """

    groups: tuple[str, ...]
    counts: tuple[int, ...]
    activations: dict[str, GroupEffects]
    attributions: dict[str, GroupEffects]
    separation: LayerProfile
    left_out: dict[str, str]
    target: str
    method: str
    settings: dict[str, Any]

    @property
    def contrasts(self) -> tuple[str, ...]:
        """What is compared: one contrast for two groups, else each group with the rest."""
        return next(iter(self.activations.values())).contrasts

    def strongest(self, count: int = 5, contrast: int = 0) -> list[tuple[str, int, float, float]]:
        """The units with the largest |effect|: (layer, unit, effect, p).

        A unit whose |effect| is that of the same unit of an earlier layer appears once, under the earlier name: a norm
        behind a convolution, dropout and blocks hand on what is already listed.

        Args:
            count: how many.
            contrast: which one.
        """
        kept: list[tuple[str, int, float, float]] = []
        for layer, effects in self.activations.items():
            sizes = effects.effect[contrast]
            for unit in sizes.abs().topk(min(count, len(sizes))).indices.tolist():
                known = [abs(effect) for _, other, effect, _ in kept if other == unit]
                if not any(math.isclose(abs(float(sizes[unit])), size, rel_tol=SAME) for size in known):
                    kept.append((layer, unit, float(sizes[unit]), float(effects.p[contrast, unit])))
        return sorted(kept, key=lambda row: -abs(row[2]))[:count]

    def profile(self, contrast: int = 0) -> LayerProfile:
        """The largest |effect| in each layer, with what chance makes of it as the null.

        Args:
            contrast: which one.
        """
        effects = list(self.activations.values())
        return LayerProfile(
            quantity="largest |effect| of a unit",
            layers=tuple(self.activations),
            values=torch.stack([one.effect[contrast].abs().max() for one in effects]),
            units="standard deviations",
            signed=False,
            method=f"{self.contrasts[contrast]}; null: exceeded in 5 % of permutations",
            settings=self.settings,
            null=torch.stack([one.null[contrast] for one in effects]),
        )

    def attribution(self, name: str | None = None) -> GroupEffects:
        """The effects on the places of an input; `name` only where there are several.

        Raises:
            OptionError: when there is none, or no such name.
        """
        if not self.attributions:
            raise OptionError("no attribution was compared: method=None was given.")
        if name is None and len(self.attributions) > 1:
            raise OptionError(f"say which input: {', '.join(self.attributions)}.")
        return self.attributions[
            choose("input", name, self.attributions) if name is not None else next(iter(self.attributions))
        ]

    def to_pandas(self) -> Any:
        """One row per contrast, layer and unit: effect, error, p, difference. pandas must be installed."""
        pandas = need("pandas", "to_pandas")
        rows = [
            {
                "contrast": contrast, "layer": layer, "unit": unit,
                "difference": float(one.difference[row, unit]), "effect": float(one.effect[row, unit]),
                "error": float(one.error[row, unit]), "p": float(one.p[row, unit]),
            }
            for layer, one in self.activations.items()
            for row, contrast in enumerate(one.contrasts)
            for unit in range(one.p.shape[1])
        ]  # fmt: skip
        return pandas.DataFrame(rows)

    def numpy(self) -> Any:
        """Layer -> the effects on its units, `(contrasts, unit)`, as a numpy array."""
        return {layer: effects.numpy() for layer, effects in self.activations.items()}

    def summary(self) -> list[tuple[str, str]]:
        """Groups, what separates them most, and the places that differ."""
        rows = [("groups", ", ".join(f"{name} ({n})" for name, n in zip(self.groups, self.counts, strict=True)))]
        for row, contrast in enumerate(self.contrasts):
            found = [f"{path}[{unit}] {g:+.2f} (p = {p:.3g})" for path, unit, g, p in self.strongest(3, row)]
            rows.append((f"units, {contrast}", ", ".join(found)))
            for name, effects in self.attributions.items():
                differ = int(effects.found()[row].sum())
                line = f"{differ} of {effects.p[row].numel()} places differ, most {effects.peak(row)}"
                rows.append((f"attribution of {name}, {contrast}", f"{line}, smallest p = {effects.p[row].min():.3g}"))
        best, value = self.separation.ranked()[0]
        rows.append(("best separation", f"{best} (ROC area {value:.2f})"))
        return [*rows, ("method", self.method), ("target", self.target)]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ErrorExplanation(GroupComparison):
    """What distinguishes a model's errors from its hits: groups "error" and "hit".

    Attributes:
        labels: the right class of each sample, `(samples,)`.
        predicted: the model's class of each sample.
        used: which samples were compared, bool: those whose stratum holds errors and hits.
    """

    labels: torch.Tensor = dataclasses.field(kw_only=True)
    predicted: torch.Tensor = dataclasses.field(kw_only=True)
    used: torch.Tensor = dataclasses.field(kw_only=True)

    @property
    def errors(self) -> torch.Tensor:
        """The numbers of the samples that the model gets wrong."""
        return (self.labels != self.predicted).nonzero().flatten()

    def confusions(self, count: int = 5) -> list[tuple[int, int, int]]:
        """The most frequent mistakes: (label, predicted, how often)."""
        wrong = self.errors
        pairs = Counter(zip(self.labels[wrong].tolist(), self.predicted[wrong].tolist(), strict=True))
        return [(label, predicted, often) for (label, predicted), often in pairs.most_common(count)]

    def summary(self) -> list[tuple[str, str]]:
        """Error rate and most frequent mistakes, then the summary of the comparison."""
        mistakes = ", ".join(f"{label} as {predicted} ({n})" for label, predicted, n in self.confusions(3))
        rate = f"{len(self.errors)} of {len(self.labels)}"
        return [("errors", rate), ("mistakes", mistakes), *super().summary()]
