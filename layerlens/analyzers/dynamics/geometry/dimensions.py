"""The shape of a cloud of points: how many directions it fills, and how separate its classes are."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from layerlens.analyzers.common.statistics import jackknife_error

GROUPS = 10
"""Groups of samples that the jackknife leaves out in turn."""


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """The shape of one layer's rows; `(series,)` each.

    Attributes:
        values: one per series.
        error: standard errors.
        null: values expected by chance.
        features: number of features of the layer.
        largest: unit with the largest spread, and its share.
        duplicates: share of samples that equal another.
    """

    values: torch.Tensor
    error: torch.Tensor
    null: torch.Tensor
    features: int
    largest: tuple[int, float]
    duplicates: float


def layer_shape(rows: torch.Tensor, classes: torch.Tensor | None, permutations: int, seed: int) -> LayerShape:
    """Measure the rows of a layer.

    Args:
        rows: `(samples, features)`.
        classes: class of each sample, `(samples,)`; None for no class separation.
        permutations: number of random orders of the classes.
        seed: seed of groups, orders and the Gaussian cloud.
    """
    n, features = rows.shape
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randperm(n, generator=generator) % GROUPS
    values, near = _spectra(rows), two_nearest(compact(rows))
    dimension, fit = two_nn(near)
    without = torch.stack([_spectra(rows[groups != group]) for group in range(min(GROUPS, n))])
    error = torch.cat([jackknife_error(without), fit.reshape(1)])
    cloud = gaussian(n, features, seed)
    spectrum = eigenvalues(cloud)
    ratio, rank = participation_ratio(spectrum), effective_rank(spectrum)
    null = torch.stack([ratio, ratio, rank, two_nn(two_nearest(cloud))[0]])
    values = torch.cat([values, dimension.reshape(1)])
    if classes is not None:
        chance = torch.stack([classes[torch.randperm(n, generator=generator)] for _ in range(permutations)])
        parts = [separation(rows[groups != group], classes[groups != group]) for group in range(min(GROUPS, n))]
        values = torch.cat([values, separation(rows, classes).reshape(1)])
        error = torch.cat([error, jackknife_error(torch.stack(parts)).reshape(1)])
        null = torch.cat([null, separation(rows, chance).mean().reshape(1)])
    variance = rows.var(dim=0)
    total = float(variance.sum())
    largest = (int(variance.argmax()), float(variance.max()) / total if total else float("nan"))
    return LayerShape(values, error, null, features, largest, float((near[:, 0] == 0).double().mean()))


def _spectra(rows: torch.Tensor) -> torch.Tensor:
    """Return participation ratio, as it is and with units alike, and effective rank, `(3,)`."""
    rows = rows - rows.mean(dim=0)
    scale = rows.square().mean(dim=0).sqrt()
    moving = scale > torch.finfo(torch.float32).eps * scale.max()
    values, scaled = eigenvalues(rows), eigenvalues(rows[:, moving] / scale[moving])
    return torch.stack([participation_ratio(values), participation_ratio(scaled), effective_rank(values)])


def eigenvalues(rows: torch.Tensor) -> torch.Tensor:
    """Return the nonzero eigenvalues of the covariance of `(n, features)` times n, smallest first."""
    if not rows.shape[1]:
        return rows.new_empty(0)
    rows = rows - rows.mean(dim=0)
    square = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    values = torch.linalg.eigvalsh(square)
    kept: torch.Tensor = values[values > values.amax() * len(square) * torch.finfo(values.dtype).eps]
    return kept


def participation_ratio(values: torch.Tensor) -> torch.Tensor:
    """Return (sum of l)^2 / sum of l^2 over the eigenvalues l of the covariance (Gao et al. 2017); NaN for none."""
    return values.sum().square() / values.square().sum()


def effective_rank(values: torch.Tensor) -> torch.Tensor:
    """Return the exponential of the entropy of the normalized singular values (Roy & Vetterli 2007, def. 1)."""
    p = values.sqrt() / values.sqrt().sum()
    return torch.special.entr(p).sum().exp() if len(values) else values.new_tensor(torch.nan)


def compact(rows: torch.Tensor) -> torch.Tensor:
    """Rotate points into as few features as there are samples; distances stay."""
    n, features = rows.shape
    return rows if features <= n else torch.linalg.qr(rows.T, mode="r").R.T


def gaussian(n: int, features: int, seed: int) -> torch.Tensor:
    """Draw an isotropic Gaussian cloud of points, rotated as in `compact` (Bartlett 1933)."""
    generator = torch.Generator().manual_seed(seed)
    if features <= n:
        return torch.randn(n, features, generator=generator, dtype=torch.float64)
    lower = torch.randn(n, n, generator=generator, dtype=torch.float64).tril(-1)
    lengths = np.random.default_rng(seed).chisquare(features - np.arange(n)) ** 0.5
    return lower + torch.diag(torch.from_numpy(lengths))


def two_nearest(points: torch.Tensor, chunk: int = 256) -> torch.Tensor:
    """Return the distances of each point to its nearest and second nearest other, `(n, 2)`."""
    parts = []
    for start in range(0, len(points), chunk):
        part = points[start : start + chunk]
        # differences, not inner products: near points are distinguished to the last digit
        d = torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist")
        d[torch.arange(len(part)), torch.arange(start, start + len(part))] = float("inf")
        parts.append(d.topk(2, dim=1, largest=False).values)
    return torch.cat(parts)


def two_nn(nearest: torch.Tensor, kept: float = 0.9) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimate the intrinsic dimension by the ratio of the two nearest distances, with its error (Facco et al. 2017).

    With mu = r2 / r1, of which F is the share below, -log(1 - F(mu)) = d log(mu): the slope of a line through the
    origin, over the smallest ratios. The largest tenth, which is least local, is left out. Duplicates (r1 = 0) have no
    ratio. The error is the standard error of the d of the Pareto law, d / sqrt(ratios).

    Args:
        nearest: distances, `(n, 2)`.
        kept: share of the ratios used.
    """
    ratios = (nearest[:, 1] / nearest[:, 0])[nearest[:, 0] > 0]
    logs = ratios.log().sort().values
    n = len(logs)
    used = int(n * kept)
    if used < 2 or not float(logs[:used].sum()):
        return nearest.new_tensor(torch.nan), nearest.new_tensor(torch.nan)
    heights = -torch.log1p(-torch.arange(1, used + 1, dtype=logs.dtype) / n)
    slope = (logs[:used] * heights).sum() / logs[:used].square().sum()
    return slope, slope / used**0.5


def separation(points: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the share of the spread that lies between classes: tr S_B / (tr S_B + tr S_W), 0 to 1.

    Args:
        points: `(n, features)`.
        classes: class numbers, `(n,)`, or `(times, n)` for several ways to label the same points.
    """
    rows = points - points.mean(dim=0)
    total = rows.square().sum()
    several = classes.reshape(-1, len(points))
    shares = []
    for labels in several:
        member = torch.nn.functional.one_hot(labels).to(points.dtype)  # (n, classes)
        member = member[:, member.any(dim=0)]
        sums = member.T @ rows
        shares.append((sums.square().sum(dim=1) / member.sum(dim=0)).sum() / total.masked_fill(total == 0, torch.nan))
    return torch.stack(shares).reshape(classes.shape[:-1])
