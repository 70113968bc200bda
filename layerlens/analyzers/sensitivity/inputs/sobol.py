"""Sobol indices: the share of a score's variance that each feature of the input causes, alone and with others."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.input_features import Spec as FeatureSpec
from layerlens.analyzers.common.held_inputs import held_input
from layerlens.analyzers.common.measure_registry import measure
from layerlens.errors import OptionError, check_count, warn
from layerlens.inputs.inputs import Forward, Hold, Input
from layerlens.model.borrowed import borrowed
from layerlens.model.fastpath import layers_called
from layerlens.results import Ranking
from layerlens.targets.target import Spec

from .distribution import StudyOptions, study
from .feature_names import Names, Ranges
from .jansen import Squares, resamples, run_designs

WIDE = 0.15
"""Half a 95 % interval above this causes a warning."""

SERIES = ("first order", "total order")


@measure(
    question="responds_to_input",
    cost="N (D + 2) F for D features, N = 1024 samples",
    needs="ranges, rows of data or a baseline",
    source="Sobol 1993; Jansen 1999; Saltelli et al. 2010",
)
def sobol(
    model: nn.Module,
    x: Input,
    *,
    ranges: Ranges | None = None,
    baseline: Baseline | None = None,
    features: FeatureSpec = None,
    names: Names = None,
    target: Spec = None,
    samples: int = 1024,
    order: Literal[1, 2] = 1,
    bootstrap: int = 200,
    batch_size: BatchSize = "auto",
    seed: int = 0,
    progress: bool | None = None,
    hold: Hold = None,
    forward: Forward | None = None,
) -> Ranking:
    """Measure the share of the score's variance that each feature of the input causes, over a distribution of inputs.

    For a score y = f(X_1, ..., X_D) of independent features, with all others written X_~j (Sobol 1993):

    - first order: S_j = Var(E[y | X_j]) / Var(y), what X_j explains by itself;
    - total order: S_Tj = E[Var(y | X_~j)] / Var(y), what remains when all but X_j are known: X_j by itself and in
      every interaction. Interactions are counted for each feature in them, so totals sum to 1 or more.

    Both by Jansen's estimators over a scrambled Sobol sequence (Owen 1998), see `jansen.Squares`. Estimates scatter
    around the true value, so an index near zero can be negative. Of several outputs (`target=None`) the variances are
    added (Gamboa et al. 2014, eq. 3).

    The features vary over one of three distributions:

    - `ranges` given: uniform between low and high, independently. Values that no feature holds stay as in x, and the
      indices are the mean over the samples of x (one study if all values vary; x then gives shape and dtype only);
    - `baseline` given: a mask for each feature, uniform from 0 (baseline) to 1 (x): parts of pictures, series, texts;
      the mean over the samples of x. `layerlens.saliency(method="sobol")` gives each sample its measured map;
    - neither: x is data `(rows, ...)`, and every feature takes values from random rows, independently of the others; a
      group of columns takes them from one row together.

    Args:
        ranges: a pair (low, high) for all features, one for each in order `(features, 2)`, or a dict by name; in the
            units of the input.
        baseline: what stands for an absent feature: `"zero"`, `"mean"`, `"blur"`, ..., a number or a tensor.
        features: None for every column of a table, every token, or about 64 cells of a picture, volume or series;
            `"superpixels"`, `"channels"`, `"places"`, `"values"`, a number of cells, or whole-number labels that
            broadcast to the input, -1 for values that stay; a dict of those by input. Or groups of the columns of a
            table: `{"size": [0, 1], "age": [2]}`.
        names: names of the features; of the columns where groups are given.
        target: what to score, see `as_target`; None for all outputs together.
        samples: number of rows N of the designs A and B; a power of 2.
        order: 2 adds the indices of pairs, for N (2 D + 2) forward passes.
        bootstrap: number of resamples of rows for errors and intervals; 0 for none.

    Returns:
        A `Ranking` with values `(features, 2)`, first and total order, with standard errors and percentile intervals
        (somewhat too wide, as the sequence is more even than random rows). `null` is the
        index of a feature that the model does not read. Checks: `"convergence"` `(points, features, 2)`, the indices
        from the first N/4, N/2 and N rows; `"variance"`; `"first-order sum"`, below 1 by the share of interactions; and
        `"second order"` `(features, features)` with its error, for order 2.

    Raises:
        InputError: when the input cannot be read or nothing in it can vary.
        OptionError: when an option is out of range, or does not fit the input.
        TargetError: when the target does not fit, or there are too many outputs to be held together.

    Warns:
        UserWarning: when intervals are wide, the score does not vary, x has few rows, or features that are correlated
            in them are drawn independently.

    Example:
        >>> net = nn.Linear(3, 1).requires_grad_(False)
        >>> _ = net.weight.copy_(torch.tensor([[2.0, 1.0, 0.0]]))
        >>> indices = sobol(net, torch.zeros(1, 3), ranges=(0, 1), names=["a", "b", "c"])
        >>> [round(value, 2) for value in indices.column("total order").tolist()]  # 4/5, 1/5, 0
        [0.8, 0.2, 0.0]
    """
    check_count("samples", samples)
    if samples < 4 or samples & (samples - 1):
        near = 2 ** max(2, samples.bit_length())
        raise OptionError(f"samples must be a power of 2, 4 or more, got {samples}; try {near}.")
    if isinstance(bootstrap, bool) or not isinstance(bootstrap, int) or bootstrap < 0 or bootstrap == 1:
        raise OptionError(f"bootstrap must be 0 or a whole number of at least 2, got {bootstrap!r}.")
    if order not in (1, 2):
        raise OptionError(f"order must be 1 or 2, got {order!r}.")
    with borrowed(model, grad=False), layers_called():
        options = StudyOptions(ranges, baseline, features, names, target, batch_size, seed)
        measured = study(model, held_input(model, x, hold, forward), forward, options)
        squares = run_designs(measured, samples, order, seed, progress)
    weights = resamples(samples, bootstrap, seed) if bootstrap else None
    checks = _checks(squares, samples, weights)
    values = checks["convergence"][-1]
    resampled = None if weights is None else _mean([one.indices(weights) for one in squares])
    interval = None if resampled is None else _interval(resampled)
    dummy = _mean([one.dummy().indices(torch.ones(1, samples).double() / samples) for one in squares])[0]
    _warn(values, interval, samples)
    passes = samples * (measured.features.count * order + 2) * measured.bases
    return Ranking(
        quantity="Sobol index",
        items=measured.names,
        values=values,
        units="share of the variance",
        signed=False,
        method=f"Sobol indices (Jansen), {samples} samples, {passes} rows run, {measured.distribution}",
        settings={
            "samples": samples,
            "forwards": passes,
            "features": measured.features.count,
            "distribution": measured.distribution,
            "order": order,
            "bootstrap": bootstrap,
            "target": measured.label,
            "batch_size": measured.batch_size,
            **measured.passes,
            "seed": seed,
        },
        series=SERIES,
        error=None if resampled is None else resampled.std(dim=0),
        interval=interval,
        null=dummy.expand(measured.features.count, 2).clone(),
        checks=checks,
        explanation=(
            "Each value is a share of the variance of the score over the whole distribution: first order what "
            "a feature explains by itself, total order with all its interactions, so their difference is interaction.",
            "It holds for this distribution with features drawn independently and shows no direction of the effect; an "
            "index no larger than the null's is chance, and indices near zero can be negative.",
        ),
    )


def _checks(squares: list[Squares], samples: int, weights: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return the indices from growing numbers of rows, and the other checks; `weights` are those of resamples."""
    counts = [n for n in (samples // 4, samples // 2, samples) if n > 1]
    prefixes = torch.stack([(torch.arange(samples) < n).double() / n for n in counts])
    convergence = _mean([one.indices(prefixes) for one in squares])
    checks = {
        "convergence": convergence,
        "convergence samples": torch.tensor(counts),
        "variance": torch.stack([one.variance(prefixes[-1:])[0] for one in squares]).mean(),
        "first-order sum": convergence[-1, :, 0].sum(),
    }
    if weights is not None:
        checks["null interval"] = _interval(_mean([one.dummy().indices(weights) for one in squares]))[0]
    if squares[0].pairs is not None:
        checks["second order"] = _mean([one.second(prefixes[-1:]) for one in squares])[0]
        if weights is not None:
            checks["second order error"] = _mean([one.second(weights) for one in squares]).std(dim=0)
    return checks


def _mean(by_base: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over samples of x, without those around which the score does not vary."""
    return torch.stack(by_base).nanmean(dim=0)


def _interval(draws: torch.Tensor) -> torch.Tensor:
    edges = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return draws.quantile(edges, dim=0).movedim(0, -1)


def _warn(values: torch.Tensor, interval: torch.Tensor | None, samples: int) -> None:
    if bool(values.isnan().any()):
        warn(
            "sobol: the score does not vary over this distribution, so its variance has no shares.",
        )
    elif interval is not None:
        half = float((interval[..., 1] - interval[..., 0]).max()) / 2
        if half > WIDE:
            warn(
                f"sobol: 95 % intervals reach {half:.2f} to either side with samples={samples}; more samples narrow "
                "them with the square root of their number or faster.",
            )
