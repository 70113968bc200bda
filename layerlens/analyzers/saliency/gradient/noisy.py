"""Gradients at noisy copies of the input, and what is made of them: what SmoothGrad and its kin share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.scorer import Leaves, Scorer, freeze, gradients, warn_of_zeros
from layerlens.errors import OptionError, check_count, check_seed, warn
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec

Statistic = Literal["mean", "magnitude", "square", "variance"]
UNITS = {"square": "squared score per unit of input", "variance": "squared score per unit of input"}


def noisy_gradients(
    model: nn.Module,
    x: Input,
    name: str,
    *,
    target: Spec,
    where: Selection,
    samples: int,
    noise: float,
    seed: int,
    statistic: Statistic,
    batch_size: BatchSize,
    forward: Forward | None,
    settings: Mapping[str, Any],
) -> Attribution:
    """A statistic of the gradients at noisy copies of x; the arguments are those of `smooth_grad`."""
    check_count("samples", samples)
    if statistic == "variance" and samples < 2:
        raise OptionError("a variance needs samples=2 or more.")
    check_seed(seed)
    if not isinstance(noise, (int, float)) or not 0 <= noise < float("inf"):
        raise OptionError(f"noise must be a part of the range of the input, 0 or above, got {noise!r}.")
    with borrowed(model):
        freeze(model)
        scorer = Scorer(model, x, target, where=where, forward=forward)
        values = {leaf: part.value.clone() for leaf, part in scorer.leaves.items()}
        score, batch = first_score(scorer, values, batch_size)
        scales = {leaf: noise * _range(value) for leaf, value in values.items()}
        if noise and bool(torch.stack([scale.flatten() == 0 for scale in scales.values()]).all(dim=0).any()):
            warn(f"{name}: a sample is constant, so noise relative to its range is none.")
        parts = [
            _moments(scorer, values, scales, rows, samples, seed, statistic, batch, name)
            for rows in torch.split(scorer.rows, batch)
        ]
        means, squares = ({leaf: torch.cat([part[k][leaf] for part in parts]) for leaf in values} for k in (0, 1))
        spread = {leaf: (squares[leaf] - means[leaf].square()).clamp_min(0) for leaf in values}
        found = spread if statistic == "variance" else means
        errors = {leaf: (part / max(1, samples - 1)).sqrt() for leaf, part in spread.items()}
        known = statistic != "variance" and samples > 1
        if noise or statistic != "variance":
            warn_of_zeros(found, name)
        return scorer.attribution(
            {leaf: part.to(values[leaf].dtype) for leaf, part in found.items()},
            method=name,
            settings={"samples": samples, "noise": noise, "seed": seed, **settings, "batch_size": batch},
            score=score,
            signed=statistic == "mean",
            units=UNITS.get(statistic, "score per unit of input"),
            checks={"relative standard error": _relative_error(means, errors)} if known else {},
            standard_error=errors if known and all(leaf.layer is None for leaf in scorer.leaves.values()) else None,
        )


def _range(value: torch.Tensor) -> torch.Tensor:
    """The range, max - min, of each sample, `(batch, 1, ...)`."""
    flat = value.reshape(len(value), -1)
    size: torch.Tensor = flat.amax(dim=1) - flat.amin(dim=1)
    return size.reshape(-1, *[1] * (value.ndim - 1))


def _moments(
    scorer: Scorer,
    values: Leaves,
    scales: Leaves,
    rows: torch.Tensor,
    samples: int,
    seed: int,
    statistic: Statistic,
    batch: int,
    label: str,
) -> tuple[Leaves, Leaves]:
    """Mean by leaf of what each copy of the samples `rows` gives, and the mean of its square."""
    generator = torch.Generator().manual_seed(seed)
    wide = {name: torch.promote_types(value.dtype, torch.float32) for name, value in values.items()}
    shape = {name: (len(rows), *value.shape[1:]) for name, value in values.items()}
    total = {name: torch.zeros(shape[name], dtype=wide[name], device=rows.device) for name in values}
    squares = {name: torch.zeros_like(part) for name, part in total.items()}
    at_once = max(1, batch // len(rows))
    for done in track(range(0, samples, at_once), label):
        copies = min(at_once, samples - done)
        drawn = [
            {
                name: torch.randn(value.shape[1:], dtype=torch.float32, generator=generator)
                for name, value in values.items()
            }
            for _ in range(copies)
        ]
        noisy = {}
        for name, value in values.items():
            normal = torch.stack([draw[name] for draw in drawn]).unsqueeze(1).to(value)  # (copies, 1, ...)
            noisy[name] = (value[rows] + scales[name][rows] * normal).flatten(0, 1)  # (copies * rows, ...)
        for name, slope in gradients(scorer, noisy, rows.repeat(copies))[1].items():
            slopes = slope.to(wide[name]).reshape(copies, *shape[name])
            own = slopes.abs() if statistic == "magnitude" else slopes.square() if statistic == "square" else slopes
            total[name] += own.sum(dim=0)
            squares[name] += own.square().sum(dim=0)
    return {name: part / samples for name, part in total.items()}, {
        name: part / samples for name, part in squares.items()
    }


def _relative_error(means: Leaves, errors: Leaves) -> torch.Tensor:
    """Norm of the standard error of the mean over the norm of the mean, one number per sample."""

    def norm(parts: Leaves) -> torch.Tensor:
        squares = [part.double().square().reshape(len(part), -1).sum(dim=1) for part in parts.values()]
        return torch.stack(squares).sum(dim=0).sqrt()

    return norm(errors) / norm(means).clamp_min(torch.finfo(torch.float64).tiny)
