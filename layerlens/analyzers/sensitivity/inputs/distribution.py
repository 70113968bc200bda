"""The distribution of inputs over which a score is studied: ranges, rows of a data set, or masks over a baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline, in_dtype_of, mixed
from layerlens.analyzers.common.features.coalitions import Coalitions
from layerlens.analyzers.common.features.input_features import Features, Spec as FeatureSpec
from layerlens.analyzers.common.samples import or_none
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import InputError, OptionError, TargetError, warn
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import seed_torch
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Spec, Target, as_target

from .feature_names import Names, Ranges, named_features, read_ranges


class Outputs:
    """Reads every number of the main output, `(rows, outputs)`, where there is no target."""

    def __init__(self) -> None:
        self.last = torch.empty(0)

    @property
    def target(self) -> Target:
        """A target for a `Scorer` that stores all numbers in `last`."""
        return Target(self._read, "all outputs")

    def _read(self, output: object, rows: torch.Tensor) -> torch.Tensor:
        main = main_output(output)
        if main.ndim == 0 or len(main) != len(rows):
            raise TargetError(
                f"the model's output {tuple(main.shape)} has no first axis of {len(rows)} samples. Give target=, a "
                "function from the output to a score (batch,)."
            )
        self.last = main.detach().reshape(len(main), -1).double().cpu()
        return self.last.sum(dim=1)


@dataclasses.dataclass
class Study:
    """A borrowed model as a function of numbers from 0 to 1, one for each feature.

    Attributes:
        names: names of the features.
        features: which value of the input belongs to which feature.
        bases: number of samples the study is made around; 1 where no value of x is kept.
        distribution: description of the distribution.
        label: name of the score.
        batch_size: number of rows in one forward pass.
    """

    names: tuple[str, ...]
    features: Features
    bases: int
    distribution: str
    label: str
    batch_size: int
    _scorer: Scorer
    _outputs: Outputs | None
    _values: Callable[[torch.Tensor, torch.Tensor], Values]
    _seed: int

    def __call__(self, u: torch.Tensor, base: int, part: int) -> torch.Tensor:
        """Return the outputs `(n, outputs)`, float64, at points u `(n, features)` of the unit cube, around one sample.

        A model that draws numbers draws the same in every run of one `part`.
        """
        rows = torch.full((len(u),), base, device=self._scorer.rows.device)
        values = self._values(u.to(rows.device), rows)
        for name, labels in self.features.labels.items():
            if bool((labels < 0).any()):
                original = self._scorer.leaves[name].value[rows]
                fixed = labels[rows] < 0 if len(labels) > 1 else labels < 0
                values[name] = torch.where(fixed, original, values[name])
        seed_torch(self._seed + part)
        if self._outputs is not None and self._scorer.apart(values, rows):
            return torch.cat([self._all(values, rows, place) for place in range(len(rows))])
        score = self._scorer(values, rows)
        return score.detach().double().cpu().unsqueeze(1) if self._outputs is None else self._outputs.last

    def _all(self, values: Values, rows: torch.Tensor, place: int) -> torch.Tensor:
        """Return all outputs of one row that is run by itself, `(1, outputs)`."""
        assert self._outputs is not None
        sample = rows[place : place + 1]
        self._scorer({name: value[place : place + 1] for name, value in values.items()}, sample)
        return self._outputs.last[sample.cpu()]

    @property
    def passes(self) -> dict[str, str]:
        """A setting, see `Scorer`."""
        return self._scorer.passes


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """What varies, over what, and what is scored.

    Attributes:
        ranges: see `read_ranges`.
        baseline: features go from it to their values in x, see `layerlens.analyzers.common.features.baselines`.
        features: see `named_features`.
        names: see `named_features`.
        target: what to score; None for all outputs together.
        batch_size: number of rows in one forward pass.
        seed: seed of every run, for models that draw numbers.
        spread: whether each value of rows runs from its smallest to its largest; else values are drawn.
    """

    ranges: Ranges | None
    baseline: Baseline | None
    features: FeatureSpec
    names: Names
    target: Spec
    batch_size: BatchSize
    seed: int
    spread: bool = False


def study(model: nn.Module, x: Input, forward: Forward | None, options: StudyOptions) -> Study:
    """Choose features, distribution and score; use it inside `borrowed(model, grad=False)`.

    Raises:
        InputError: when nothing in the input can vary.
        OptionError: when options contradict each other or do not fit.
        TargetError: when the target holds a class for each sample, but x as a whole is one distribution.
    """
    ranges, baseline, target = options.ranges, options.baseline, options.target
    if ranges is not None and baseline is not None:
        raise OptionError("give ranges= (uniform values) or baseline= (masks over x), not both.")
    inputs = as_inputs(x)
    seed_torch(options.seed)
    outputs = Outputs() if target is None else None
    aim = as_target(target) if outputs is None else outputs.target
    whole = Scorer(model, inputs, aim, forward=forward, whole="always")
    input_features, titles = named_features(whole, options.features, options.names)
    rows = torch.arange(inputs.batch)
    if baseline is None and (ranges is None or _all_vary(whole, input_features)):
        rows = rows[:1]
    if len(rows) < inputs.batch and aim.each is not None:
        raise TargetError(
            "the target holds a class for each sample, but here x as a whole is one distribution: give one class."
        )
    if len(rows) < inputs.batch and or_none(lambda: (inputs.rows(rows).run(model, forward),)) is None:
        raise InputError(
            f"rows are drawn from x as a whole and scored one by one, but {type(model).__name__} does not run on one "
            f"sample (batch statistics, or a fixed number of samples; it runs on {inputs.batch}). Give baseline=, such "
            "as baseline='zero', which explains each sample within its batch."
        )
    scorer = whole
    if len(rows) < inputs.batch:
        scorer = Scorer(model, whole.inputs.rows(rows), aim, forward=forward, whole="always")
    coalitions = Coalitions(scorer, "zero" if baseline is None else baseline, options.batch_size)
    if baseline is not None:
        text, values = f"masks from baseline {coalitions.label} to x", _masked(coalitions, input_features)
    elif ranges is not None:
        pairs = read_ranges(ranges, titles)
        text, values = "uniform over the given ranges", _uniform(pairs, scorer, input_features)
    else:
        text, values = row_values(whole, input_features, titles, options.spread)
    study_features = input_features if len(rows) == inputs.batch else _first_row(input_features)
    size = coalitions.batch_size
    return Study(
        titles, study_features, len(rows), text, scorer.target.label, size, scorer, outputs, values, options.seed
    )


def _all_vary(scorer: Scorer, features: Features) -> bool:
    """Return whether no value of the input stays as it is in x."""
    batched = [name for name, tensor in scorer.inputs.tensors().items() if tensor.ndim]
    return set(batched) <= set(scorer.leaves) and all(bool((one >= 0).all()) for one in features.labels.values())


def _first_row(features: Features) -> Features:
    return Features({name: labels[:1] for name, labels in features.labels.items()}, features.count)


def _masked(coalitions: Coalitions, features: Features) -> Callable[[torch.Tensor, torch.Tensor], Values]:
    def values(u: torch.Tensor, rows: torch.Tensor) -> Values:
        values_by_input = {}
        for name, mask in features.masks(u, rows).items():
            start, end = coalitions.starts[name][rows], coalitions.ends[name][rows]
            values_by_input[name] = mixed(start, end, mask)
        return values_by_input

    return values


def _uniform(pairs: torch.Tensor, scorer: Scorer, features: Features) -> Callable[[torch.Tensor, torch.Tensor], Values]:
    def values(u: torch.Tensor, rows: torch.Tensor) -> Values:
        low, high = pairs.to(u).unbind(dim=1)
        row_features = _first_row(features) if len(scorer.rows) == 1 else features
        placed = row_features.masks(low + u * (high - low), rows)
        return {
            name: in_dtype_of(leaf.value, one).expand(len(rows), *leaf.value.shape[1:])
            for (name, one), leaf in zip(placed.items(), (scorer.leaves[name] for name in placed), strict=True)
        }

    return values


Values = dict[str, torch.Tensor]

FEW_ROWS = 64
"""A distribution of fewer rows causes a warning."""

HIGH_CORRELATION = 0.8
"""Correlation above which two features should be one group."""


def row_values(
    whole: Scorer, features: Features, names: tuple[str, ...], spread: bool
) -> tuple[str, Callable[[torch.Tensor, torch.Tensor], Values]]:
    """Let each feature by itself take values that it has in rows of x.

    Returns:
        A description, and a function from points of the unit cube and rows to values of the input.

    Raises:
        OptionError: when there is only one row, or features differ between samples.
    """
    batch = len(whole.rows)
    if batch < 2:
        raise OptionError(
            "x holds one sample, which is not a distribution. Give more rows, ranges= with (low, high) for the "
            "features, or baseline= to remove parts of this sample."
        )
    if any(len(labels) > 1 for labels in features.labels.values()):
        raise OptionError(
            "these features differ from sample to sample (superpixels, padding), so their values cannot be exchanged "
            "between the rows of x. Give baseline= instead, or labels that all samples share."
        )
    tables = {name: leaf.value.reshape(len(leaf.value), -1) for name, leaf in whole.leaves.items()}  # (rows, values)
    labels = {
        name: features.labels[name].expand(1, *leaf.value.shape[1:]).flatten() for name, leaf in whole.leaves.items()
    }
    _warn_of_rows(tables, labels, names, batch, whole)
    if spread:
        low = {name: table.amin(dim=0) for name, table in tables.items()}
        high = {name: table.amax(dim=0) for name, table in tables.items()}
    else:
        counts = torch.stack([one[one >= 0].bincount(minlength=features.count) for one in labels.values()]).sum(dim=0)
        alone = {name: counts[one.clamp_min(0)] == 1 for name, one in labels.items()}
        # single columns are sorted, so that near numbers of the sequence are near values
        tables = {
            name: torch.where(alone[name], table.sort(dim=0).values, table) if bool(alone[name].any()) else table
            for name, table in tables.items()
        }

    def values(u: torch.Tensor, rows: torch.Tensor) -> Values:
        values_by_input = {}
        placed = u if spread else (u * batch).floor().clamp(0, batch - 1)
        for name, one in Features({n: features.labels[n] for n in tables}, features.count).masks(placed, rows).items():
            leaf = whole.leaves[name].value
            wide = one.expand(len(rows), *leaf.shape[1:]).reshape(len(rows), -1)
            if spread:
                value = torch.lerp(low[name].double(), high[name].double(), wide.double())
            else:
                value = tables[name].gather(0, wide.long())
            values_by_input[name] = in_dtype_of(leaf, value).reshape(len(rows), *leaf.shape[1:])
        return values_by_input

    if spread:
        return f"from the smallest to the largest value in {batch} rows", values
    return f"values of {batch} rows, features drawn independently", values


def _warn_of_rows(tables: Values, labels: Values, names: tuple[str, ...], batch: int, whole: Scorer) -> None:
    """Warn of what would mislead: few rows, values that no feature holds, correlated features."""
    if batch < FEW_ROWS:
        warn(f"the distribution of the features comes from only {batch} rows; give more, or ranges=.")
    others = {name: tensor for name, tensor in whole.inputs.tensors().items() if tensor.ndim and name not in tables}
    kept = {name: table[:, labels[name] < 0] for name, table in tables.items()} | others
    differing = [name for name, one in kept.items() if one.numel() and bool((one != one[:1]).any())]
    if differing:
        warn(
            f"values of input {', '.join(differing)} that belong to no feature differ between the rows of x; the "
            "first row's values are used throughout.",
        )
    table = torch.cat([one.double() for one in tables.values()], dim=1)
    of = torch.cat(list(labels.values()))
    if not 1 < table.shape[1] <= 1000:
        return
    spread = table.std(dim=0) > 0
    correlation = torch.corrcoef(table[:, spread].T).abs() if int(spread.sum()) > 1 else torch.zeros(1, 1)
    feature_of = of[spread]
    correlation = torch.where(
        (feature_of[:, None] == feature_of) | (feature_of[:, None] < 0) | (feature_of < 0), 0.0, correlation
    )
    largest = float(correlation.max())
    if batch >= FEW_ROWS and largest > HIGH_CORRELATION:
        one, other = divmod(int(correlation.argmax()), len(feature_of))
        warn(
            f"{names[int(feature_of[one])]!r} and {names[int(feature_of[other])]!r} are correlated in the rows of x ("
            f"{largest:.2f}) and are drawn independently here: the model runs on rows unlike any it may have seen. "
            "Put them in one group: features={'both': [...]}.",
        )
