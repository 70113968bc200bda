"""SmoothGrad: the gradient averaged over noisy copies of the input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...borrow import borrowed
from ...errors import OptionError, check_count
from ...progress import track
from ...results import Attribution
from ...target import Spec
from ..score import Scorer
from .differentiate import BatchSize, Leaves, first_score, freeze, gradients, warn_of_zeros


def smooth_grad(
    model: nn.Module,
    x: Any,
    *,
    target: Spec = None,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    magnitude: bool = False,
    batch_size: BatchSize = "auto",
    forward: Callable[..., Any] | None = None,
) -> Attribution:
    """Average the gradient of the score over noisy copies of the input.

    1/n sum over k of dS/dx at x + e_k, e_k ~ N(0, s^2), s = noise (max x - min x) (Smilkov et al. 2017, sec. 3).
    The noise is drawn here and not by `captum.attr.NoiseTunnel`, which takes one s for the whole batch and draws other
    numbers when samples are batched differently: every sample gets the same standard normal draws, scaled by its own
    range, so that a batch gives what its samples give alone.

    Args:
        model: any module.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments. For token ids the
            noise is added to their embeddings, and values are summed over their features.
        target: what to score, as in `layerlens.target.as_target`; None is the class predicted at x.
        samples: noisy copies n of each sample.
        noise: standard deviation s, as a part of the range (max - min) of each sample's input.
        seed: of the noise.
        magnitude: whether to average absolute values, |dS/dx|.
        batch_size: copies in one pass; `"auto"` bounds it by memory.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        An `Attribution` shaped like the input (`(batch, token)` for token ids), in units of score per unit of input;
        its check is the `"relative standard error"` of each sample: the norm of the standard error over that of the
        mean.

    Raises:
        InputError: when the input holds nothing to differentiate.
        OptionError: when an option is out of range.
        TargetError: when the target does not fit the output, or no gradient reaches the input.

    Warns:
        UserWarning: when a sample is constant, so that it gets no noise, or its values are zero everywhere.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> smooth_grad(net, torch.tensor([[2.0, 5.0]])).tensor
        tensor([[ 3., -1.]])
    """
    check_count("samples", samples)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise OptionError(f"seed must be a whole number, got {seed!r}.")
    if not isinstance(noise, (int, float)) or not 0 <= noise < float("inf"):
        raise OptionError(f"noise must be a part of the range of the input, 0 or above, got {noise!r}.")
    with borrowed(model):
        freeze(model)
        scorer = Scorer(model, x, target, forward=forward)
        values = {name: leaf.value.clone() for name, leaf in scorer.leaves.items()}
        score, batch = first_score(scorer, values, batch_size)
        scales = {name: noise * _range(value) for name, value in values.items()}
        if noise and bool(torch.stack([scale.flatten() == 0 for scale in scales.values()]).all(dim=0).any()):
            warnings.warn("smooth_grad: a sample is constant, so noise relative to its range is none.", stacklevel=2)
        parts = [
            _average(scorer, values, scales, rows, samples, seed, magnitude, batch)
            for rows in torch.split(scorer.rows, batch)
        ]
        means = {name: torch.cat([mean[name] for mean, _ in parts]) for name in values}
        warn_of_zeros(means, "smooth_grad")
        return scorer.attribution(
            {name: mean.to(values[name].dtype) for name, mean in means.items()},
            method="smooth_grad",
            settings={
                "samples": samples,
                "noise": noise,
                "seed": seed,
                "magnitude": magnitude,
                "batch_size": batch,
            },
            score=score,
            signed=not magnitude,
            units="score per unit of input",
            checks={"relative standard error": torch.cat([error for _, error in parts])} if samples > 1 else {},
        )


def _range(value: torch.Tensor) -> torch.Tensor:
    """The range, max - min, of each sample, `(batch, 1, ...)`."""
    flat = value.reshape(len(value), -1)
    size: torch.Tensor = flat.amax(dim=1) - flat.amin(dim=1)
    return size.reshape(-1, *[1] * (value.ndim - 1))


def _average(
    scorer: Scorer,
    values: Leaves,
    scales: Leaves,
    rows: torch.Tensor,
    samples: int,
    seed: int,
    magnitude: bool,
    batch: int,
) -> tuple[Leaves, torch.Tensor]:
    """Mean gradient of the samples `rows` by leaf, and its relative standard error, `(len(rows),)`."""
    generator = torch.Generator().manual_seed(seed)
    wide = {name: torch.promote_types(value.dtype, torch.float32) for name, value in values.items()}
    shape = {name: (len(rows), *value.shape[1:]) for name, value in values.items()}
    total = {name: torch.zeros(shape[name], dtype=wide[name], device=rows.device) for name in values}
    squares = {name: torch.zeros_like(part) for name, part in total.items()}
    at_once = max(1, batch // len(rows))
    for done in track(range(0, samples, at_once), "smooth_grad"):
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
            total[name] += (slopes.abs() if magnitude else slopes).sum(dim=0)
            squares[name] += slopes.square().sum(dim=0)
    means = {name: part / samples for name, part in total.items()}
    return means, _relative_error(means, squares, samples)


def _relative_error(means: Leaves, squares: Leaves, samples: int) -> torch.Tensor:
    """Norm of the standard error of the mean over the norm of the mean, one number per sample."""

    def summed(parts: Leaves) -> torch.Tensor:
        return torch.stack([part.double().reshape(len(part), -1).sum(dim=1) for part in parts.values()]).sum(dim=0)

    strength = summed({name: mean.double().square() for name, mean in means.items()})
    spread = summed({name: squares[name] / samples - mean.square() for name, mean in means.items()}).clamp_min(0)
    error = (spread / max(1, samples - 1)).sqrt()
    return error / strength.sqrt().clamp_min(torch.finfo(torch.float64).tiny)
