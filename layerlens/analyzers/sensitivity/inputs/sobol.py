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
from layerlens.analyzers.common.statistics import jackknife_error
from layerlens.errors import OptionError, check_count, warn
from layerlens.inputs.inputs import Forward, Hold, Input
from layerlens.model.borrowed import borrowed
from layerlens.model.fastpath import layers_called
from layerlens.results import Ranking
from layerlens.results.intervals import interval_of
from layerlens.targets.target import Spec

from .distribution import StudyOptions, study
from .feature_names import Names, Ranges
from .jansen import RowTerms, replicates_of, run_designs, without_each

WIDE = 0.15
"""Half a 95 % interval above this causes a warning."""

SERIES = ("first order", "total order")

FEWEST = 32
"""Fewest samples with errors: fewer replicated rows do not show how they scatter."""


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
    replicates: int | None = None,
    bootstrap: int | None = None,
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

    By the estimators of Saltelli et al. 2010, table 2 (b) and (f), over scrambled Sobol sequences (Owen 1998). They
    scatter around the true value, so an index near zero can be negative. Of several outputs (`target=None`) the
    variances are added (Gamboa et al. 2014, eq. 3).

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
        replicates: number of sequences, a power of 2; None for 8, or 4 with fewer than 512 samples. A single one has
            no error, and is closer to the truth on smooth scores of few features.
        bootstrap: deprecated; without effect, as errors need no resampled rows.

    Returns:
        A `Ranking` with values `(features, 2)`, first and total order, with standard errors (jackknife over the
        sequences) and 95 % intervals, from 32 samples on. Checks: `"convergence"` `(points, features, 2)`, the indices
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
    if bootstrap is not None:
        warn("sobol(bootstrap=) has no effect; without errors: replicates=1.", DeprecationWarning)
    replicates = replicates_of(replicates, samples)
    if order not in (1, 2):
        raise OptionError(f"order must be 1 or 2, got {order!r}.")
    with borrowed(model, grad=False), layers_called():
        options = StudyOptions(ranges, baseline, features, names, target, batch_size, seed)
        measured = study(model, held_input(model, x, hold, forward), forward, options)
        terms = run_designs(measured, samples, replicates, order, seed, progress)
    left = without_each(samples, replicates) if replicates > 1 and samples >= FEWEST else None
    checks = _checks(terms, samples, left)
    values = checks["convergence"][-1]
    error = interval = degrees = None
    if left is not None:
        error, degrees = jackknife_error(_mean([one.indices(left) for one in terms])), replicates - 1
        interval = torch.stack(interval_of(values, error, degrees, share=0.95), dim=-1)
    _warn(values, interval, samples)
    passes = samples * (measured.features.count * order + 2) * measured.bases
    return Ranking(
        quantity="Sobol index",
        items=measured.names,
        values=values,
        units="share of the variance",
        signed=False,
        method=f"Sobol indices, {samples} samples, {passes} rows run, {measured.distribution}",
        settings={
            "samples": samples,
            "forwards": passes,
            "features": measured.features.count,
            "distribution": measured.distribution,
            "order": order,
            "replicates": replicates,
            "target": measured.label,
            "batch_size": measured.batch_size,
            **measured.passes,
            "seed": seed,
        },
        series=SERIES,
        error=error,
        interval=interval,
        degrees=degrees,
        checks=checks,
        explanation=(
            "Each value is a share of the variance of the score over the whole distribution: first order what "
            "a feature explains by itself, total order with all its interactions, so their difference is interaction.",
            "It holds for this distribution with features drawn independently and shows no direction of the effect; a "
            "feature that is not read gets exactly 0, and an index whose interval holds 0 is chance.",
        ),
    )


def _checks(terms: list[RowTerms], samples: int, left: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return the indices from growing numbers of rows, and the other checks; `left` are weights for the jackknife."""
    counts = [n for n in (samples // 4, samples // 2, samples) if n > 1]
    prefixes = torch.stack([(torch.arange(samples) < n).double() / n for n in counts])
    convergence = _mean([one.indices(prefixes) for one in terms])
    checks = {
        "convergence": convergence,
        "convergence samples": torch.tensor(counts),
        "variance": torch.stack([one.variance(prefixes[-1:])[0] for one in terms]).mean(),
        "first-order sum": convergence[-1, :, 0].sum(),
    }
    if terms[0].pairs is not None:
        checks["second order"] = _mean([one.second(prefixes[-1:]) for one in terms])[0]
        if left is not None:
            checks["second order error"] = jackknife_error(_mean([one.second(left) for one in terms]))
    return checks


def _mean(by_base: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over samples of x, without those around which the score does not vary."""
    return torch.stack(by_base).nanmean(dim=0)


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
