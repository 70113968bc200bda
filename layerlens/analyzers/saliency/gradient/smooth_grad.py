"""SmoothGrad and its variants: a statistic of the gradients at noisy copies of the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.features.references import Baselines
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.rounds import Rounds
from layerlens.analyzers.common.scorer import Leaves, Scorer, gradients, scoring, warn_of_zeros
from layerlens.errors import OptionError, check_count, check_seed
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .moments import Draws, Statistic, in_rounds
from .noise import SHARE, Deviations, noise_scales, noisy_copies
from .noisy_maps import FIRST, noisy_maps, relative_error

UNITS = {"square": "squared score per unit of input", "variance": "squared score per unit of input"}


@method(family="gradient", passes="25 gradients (samples)", source="Smilkov et al. 2017", by_lengths=True)
def smooth_grad(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    samples: int = 25,
    until: float | None = None,
    noise: float = SHARE,
    stdevs: Deviations = None,
    of: str = "gradient",
    of_options: Mapping[str, Any] | None = None,
    baselines: Baselines = None,
    seed: int = 0,
    magnitude: bool = False,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Average the gradient of the score over noisy copies of the input.

    1/n sum over k of dS/dx at x + e_k, e_k ~ N(0, s^2), s = noise (max x - min x) (Smilkov et al. 2017, sec. 3).
    Every sample gets the same standard normal draws, scaled by its own range, so that a batch gives what its samples
    give alone (`captum.attr.NoiseTunnel` takes one s for the whole batch, and its draws depend on the batch).
    With `of` the maps of another method are averaged instead of gradients. The noise is then added to the inputs of
    floating-point numbers, also where `where` names a layer; of gradients it is added to what they are taken by.

    Args:
        samples: number n of noisy copies of each sample.
        noise: standard deviation s of the noise, as a share of the range (max - min) of each sample's input.
        baselines: references for a method with a `baseline`: each copy takes one of them at random. See `deep_shap`.
        magnitude: whether to average absolute values, |dS/dx|.

    Returns:
        An `Attribution` shaped like the input (`(batch, token)` for token ids), in units of score per unit of input, or
        shaped and in units as those of the method `of`; with the standard error of every value. Its check is the
        `"relative standard error"` of each sample: the norm of the standard error over the norm of the mean.

    Warns:
        UserWarning: when a sample is constant, so that it gets no noise, or its values are zero everywhere.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> smooth_grad(net, torch.tensor([[2.0, 5.0]])).tensor
        tensor([[ 3., -1.]])
        >>> smooth_grad(net, torch.tensor([[2.0, 5.0]]), of="integrated_gradients", of_options={"steps": 20}).units
        'score'
    """
    return _noisy_gradients(
        model, x, "smooth_grad", target=target, where=where, samples=samples, until=until, noise=noise,
        stdevs=stdevs, of=of, of_options=of_options, baselines=baselines, seed=seed,
        statistic="magnitude" if magnitude else "mean", batch_size=batch_size, forward=forward,
        settings={"magnitude": magnitude},
    )  # fmt: skip


@method(family="gradient", passes="25 gradients (samples)", source="Hooker et al. 2019", by_lengths=True)
def smooth_grad_squared(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    samples: int = 25,
    until: float | None = None,
    noise: float = SHARE,
    stdevs: Deviations = None,
    of: str = "gradient",
    of_options: Mapping[str, Any] | None = None,
    baselines: Baselines = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Average the squared gradient of the score over noisy copies of the input.

    1/n sum over k of g_k^2, g_k = dS/dx at x + e_k, e_k ~ N(0, s^2) (Hooker et al. 2019, sec. 4.1).

    Args:
        samples: number of noisy copies of each sample.
        noise: standard deviation of the noise, as a share of the range (max - min) of each sample's input.
        baselines: references for a method with a `baseline`: each copy takes one of them at random.

    Returns:
        An `Attribution` shaped like the input (`(batch, token)` for token ids), 0 or above, in squared units of score
        per unit of input, with the standard error of every value.

    Warns:
        UserWarning: when a sample is constant, so that it gets no noise, or its values are zero everywhere.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> smooth_grad_squared(net, torch.tensor([[2.0, 5.0]])).tensor
        tensor([[9., 1.]])
    """
    return _noisy_gradients(
        model, x, "smooth_grad_squared", target=target, where=where, samples=samples, until=until, noise=noise,
        stdevs=stdevs, of=of, of_options=of_options, baselines=baselines, seed=seed,
        statistic="square", batch_size=batch_size, forward=forward, settings={},
    )  # fmt: skip


@method(
    family="gradient", passes="25 gradients (samples)", source="Adebayo et al. 2018; Seo et al. 2018", by_lengths=True
)
def var_grad(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    samples: int = 25,
    until: float | None = None,
    noise: float = SHARE,
    stdevs: Deviations = None,
    of: str = "gradient",
    of_options: Mapping[str, Any] | None = None,
    baselines: Baselines = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Compute the variance of the gradient of the score over noisy copies of the input.

    1/n sum over k of (g_k - mean g)^2, g_k = dS/dx at x + e_k, e_k ~ N(0, s^2) (Adebayo et al. 2018, appendix; Seo et
    al. 2018). It is 0 for a linear model: it shows where the score bends, not how it rises.

    Args:
        samples: number of noisy copies of each sample, 2 or more.
        noise: standard deviation of the noise, as a share of the range (max - min) of each sample's input.
        baselines: references for a method with a `baseline`: each copy takes one of them at random.

    Returns:
        An `Attribution` shaped like the input (`(batch, token)` for token ids), 0 or above, in squared units of score
        per unit of input, with the standard error of every value.

    Warns:
        UserWarning: when a sample is constant, so that it gets no noise, or its values are zero everywhere.

    Example:
        >>> class Square(nn.Module):
        ...     def forward(self, x):
        ...         return x.square().sum(dim=1, keepdim=True)
        >>> bool((var_grad(Square(), torch.tensor([[2.0, 5.0]])).tensor > 0).all())
        True
    """
    return _noisy_gradients(
        model, x, "var_grad", target=target, where=where, samples=samples, until=until, noise=noise,
        stdevs=stdevs, of=of, of_options=of_options, baselines=baselines, seed=seed,
        statistic="variance", batch_size=batch_size, forward=forward, settings={},
    )  # fmt: skip


def _noisy_gradients(
    model: nn.Module,
    x: Input,
    name: str,
    *,
    target: Spec,
    where: Selection,
    samples: int,
    until: float | None,
    noise: float,
    stdevs: Deviations,
    of: str,
    of_options: Mapping[str, Any] | None,
    baselines: Baselines,
    seed: int,
    statistic: Statistic,
    batch_size: BatchSize,
    forward: Forward | None,
    settings: Mapping[str, Any],
) -> Attribution:
    """Return a statistic of the gradients at noisy copies of x; the arguments are those of `smooth_grad`.

    Raises:
        OptionError: when an option is out of range.
    """
    check_count("samples", samples)
    if statistic == "variance" and samples < 2:
        raise OptionError("a variance needs samples=2 or more.")
    check_seed(seed)
    if of != "gradient" or of_options or baselines is not None:
        return noisy_maps(
            model, x, name, of=of, of_options=of_options or {}, baselines=baselines, target=target, where=where,
            samples=samples, until=until, noise=noise, stdevs=stdevs, seed=seed, statistic=statistic,
            batch_size=batch_size, forward=forward, settings=settings,
        )  # fmt: skip
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        values = scorer.values()
        score, batch = first_score(scorer, values, batch_size)
        scales = noise_scales(name, scorer, values, noise, stdevs)
        tokens = [leaf for leaf, one in scorer.leaves.items() if one.layer is not None]
        parts = [(rows, Draws(statistic, tokens)) for rows in torch.split(scorer.rows, batch)]
        rounds = Rounds(name, "samples", samples, until, first=FIRST)

        def add(rows: torch.Tensor, draws: Draws, wanted: range, generator: torch.Generator) -> None:
            _add_gradients(draws, scorer, values, scales, rows, wanted, batch, generator, name)

        found = in_rounds(rounds, parts, seed, add, lambda each: _numbers(each, tokens))
        if statistic != "variance" or (noise and stdevs is None) or any(bool(one.any()) for one in scales.values()):
            warn_of_zeros(found.values, name)
        numbers, checks = _numbers(found.values, tokens), {}
        if found.errors is not None:
            checks["relative standard error"] = relative_error(numbers, found.errors, found.values)

        def typed(parts: Leaves | None) -> Leaves | None:
            return None if parts is None else {leaf: part.to(values[leaf].dtype) for leaf, part in parts.items()}

        return scorer.attribution(
            typed(found.values) or {},
            method=name,
            settings={
                **rounds.settings,
                **({"noise": noise} if stdevs is None else {"stdevs": stdevs}),
                "seed": seed,
                **settings,
                "batch_size": batch,
            },
            score=score,
            signed=statistic == "mean",
            units=UNITS.get(statistic, "score per unit of input"),
            checks=rounds.checks(checks),
            standard_error=typed(found.errors),
            degrees=found.degrees,
            skewness=typed(found.skewness),
        )


def _numbers(values: Leaves, tokens: Sequence[str]) -> Leaves:
    """The values as they are returned, one number for each token."""
    return {name: value.sum(dim=-1) if name in tokens else value for name, value in values.items()}


def _add_gradients(
    draws: Draws,
    scorer: Scorer,
    values: Leaves,
    scales: Leaves,
    rows: torch.Tensor,
    wanted: range,
    batch: int,
    generator: torch.Generator,
    label: str,
) -> None:
    """Add the gradients at noisy copies of the samples `rows`, one copy for each number of `wanted`."""
    at_once = max(1, batch // len(rows))
    for done in track(wanted[::at_once], label):
        copies = min(at_once, wanted.stop - done)
        noisy = noisy_copies(values, scales, rows, copies, generator)
        for name, slope in gradients(scorer, noisy, rows.repeat(copies))[1].items():
            draws.add(name, slope.double().reshape(copies, len(rows), *values[name].shape[1:]))
