"""The effect of each source on an answer, from a few ablations and an attribution as the prior."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Masks = npt.NDArray[np.bool_]

SHARES = ((0.0, 0.0, 1.0), (0.0, 0.7, 0.3), (0.3, 0.5, 0.2), (0.6, 0.3, 0.1), (0.9, 0.05, 0.05))
"""Shares of the variance of effects: along the prior, in proportion to its square, and equal for every source."""

NOISE = (0.02, 0.1, 0.4, 1.5)
"""Variance of what is not linear, in units of the variance of the linear part over random ablations."""

CANDIDATES = 64
"""Random ablations that a design is taken from, at least; and four for each ablation of the design."""


def masks(count: int, sources: int, prior: Array | None = None, seed: int = 0) -> Masks:
    """Return which sources each ablation keeps, `(count, sources)`, True where a source is kept.

    Args:
        count: number of ablations.
        sources: number of sources.
        prior: expected effects, `(sources,)` or `(parts, sources)`; None if unknown.
        seed: seed of the random ablations that `chosen` takes them from.

    Example:
        >>> masks(3, 5).shape
        (3, 5)
    """
    drawn = np.random.default_rng(seed).random((max(CANDIDATES, 4 * count), sources)) < 0.5
    return chosen(drawn, count, prior)


def chosen(candidates: Masks, count: int, prior: Array | None = None) -> Masks:
    """Return the ablations that say most about the effects together with the whole prompt, best first.

    Each is the one that leaves the smallest trace of the posterior covariance, given those before it (A-optimality), so
    sources with a large prior are separated first. None is taken twice before all were.

    Args:
        candidates: random ablations, `(candidate, source)`.
        count: number of ablations.
        prior: expected effects, `(source,)` or `(part, source)`; None if unknown.
    """
    sources = candidates.shape[1]
    spread = np.ones(sources)
    if prior is not None:
        spread = 0.5 * (_scaled(np.atleast_2d(prior)) ** 2).mean(axis=0) + 0.5
    covariance = np.diag([*spread, 10.0 * sources])  # the last one is the intercept
    noise = 0.1 * sources / 4
    different = np.unique(candidates[~candidates.all(axis=1)], axis=0)
    rows = np.column_stack([different - 0.5, np.ones(len(different))])
    x = np.array([*np.full(sources, 0.5), 1.0])  # the whole prompt
    found: list[int] = []
    for _ in range(min(count, len(rows))):
        seen = covariance @ x
        covariance -= np.outer(seen, seen) / (noise + x @ seen)
        ahead = rows @ covariance
        gain = (ahead[:, :-1] ** 2).sum(axis=1) / (noise + (ahead * rows).sum(axis=1))
        gain[found] = -1.0
        found.append(int(gain.argmax()))
        x = rows[found[-1]]
    return np.resize(different[found], (count, sources)) if found else np.zeros((count, sources), dtype=bool)


def fit(kept: Masks, effects: Array, prior: Array | None = None) -> tuple[Array, Array, Array]:
    """Return the linear effect of every source on the score of every part: a Bayesian regression.

    score = intercept + kept @ values + noise, with values ~ N(0, v (a r r^T + b diag(r^2) + c I)) for a prior r of mean
    square 1: it may be right up to its scale (a), know only which effects are large (b), or nothing (c). The variance v
    has the reference prior. The shares a, b, c and the noise are not chosen: the posterior is averaged over a grid of
    them, weighted by the marginal likelihood (empirical Bayes would take the best one).

    Args:
        kept: which sources each ablation keeps, `(ablation, source)`; the whole prompt is one of them.
        effects: scores of the parts, `(ablation, part)`.
        prior: expected effects, `(part, source)`, in any unit; None if unknown.

    Returns:
        Values `(part, source)`, their standard errors `(part, source)`, infinite if unknown, and the intercept
        `(part,)`, which is the score without any source. The unit is that of `effects`.

    Example:
        >>> kept = np.random.default_rng(0).random((20, 3)) < 0.5
        >>> values, errors, intercept = fit(kept, kept @ np.array([[3.0], [0.0], [-1.0]]))
        >>> bool(np.abs(values - [[3, 0, -1]]).max() < 0.1)
        True
    """
    count, sources = kept.shape
    parts = effects.shape[1]
    # with a flat prior for the intercept: contrasts of the ablations, orthogonal to a constant
    contrasts = np.linalg.qr(np.column_stack([np.ones(count), np.eye(count)[:, 1:]]))[0][:, 1:]
    x = contrasts.T @ (kept - 0.5)
    values, errors = np.zeros((parts, sources)), np.zeros((parts, sources))
    scaled = np.zeros((parts, sources)) if prior is None else _scaled(prior)
    for part in range(parts):
        size = 0.0 if prior is None else float((prior[part] ** 2).mean())
        values[part], errors[part] = _fit(x, contrasts.T @ effects[:, part], scaled[part], size)
    return values, errors, effects.mean(axis=0) - values @ kept.mean(axis=0)


def _fit(x: Array, y: Array, prior: Array, size: float) -> tuple[Array, Array]:
    """Posterior mean and standard deviation of the effects on one part.

    Args:
        x: contrasts of the ablations, `(contrast, source)`.
        y: contrasts of the score, `(contrast,)`.
        prior: expected effects of mean square 1, or zeros, `(source,)`.
        size: mean square of the prior in its own unit, the guess of v before any ablation; 0 if there is none.
    """
    if not len(y) and not size:
        return np.zeros_like(prior), np.full_like(prior, np.inf)
    sources = x.shape[1]
    shares = np.array(SHARES if prior.any() else SHARES[:1])
    along, noise = np.repeat(shares, len(NOISE), axis=0), np.tile(NOISE, len(shares)) * sources / 4
    spread = along[:, 1:2] * prior**2 + along[:, 2:]  # (setting, source), the diagonal part of the covariance
    seen = x @ prior
    covariance = (x * spread[:, None]) @ x.T + along[:, 0, None, None] * np.outer(seen, seen)
    covariance += noise[:, None, None] * np.eye(len(y))
    # (setting, contrast, source): covariance of scores and effects
    both = x * spread[:, None] + along[:, 0, None, None] * np.outer(seen, prior)
    solved = np.linalg.solve(
        covariance, np.concatenate([both, np.broadcast_to(y[:, None], (*both.shape[:2], 1))], axis=2)
    )
    residual = solved[:, :, -1] @ y  # (setting,): y^T K^-1 y
    known = 1.0 if size > 0 else 0.0
    freedom = len(y) + known
    variance = (residual + known * size) / max(freedom, 1)
    log_weight = -0.5 * np.linalg.slogdet(covariance)[1] - 0.5 * freedom * np.log(np.maximum(variance, 1e-300))
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    means = np.einsum("gcs,gc->gs", both, solved[:, :, -1])
    left = spread + along[:, :1] * prior**2 - (both * solved[:, :, :-1]).sum(axis=1)
    mean = weight @ means
    within = weight @ (variance[:, None] * np.maximum(left, 0))
    return mean, np.sqrt(within + weight @ (means - mean) ** 2)


def _scaled(prior: Array) -> Array:
    """Every row with mean square 1; a row of zeros stays."""
    size = np.sqrt((prior**2).mean(axis=1, keepdims=True))
    return np.asarray(prior / np.where(size > 0, size, 1), dtype=np.float64)
