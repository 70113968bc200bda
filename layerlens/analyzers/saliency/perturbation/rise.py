"""RISE: the score under random smooth masks, and where the masks were that raised it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.coalitions import Coalitions
from layerlens.analyzers.common.leaves.leaves import Leaf, by_leaf, place_axes
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.rounds import Rounds
from layerlens.analyzers.common.scorer import scoring, warn_of_zeros
from layerlens.analyzers.common.token_inputs import used_places
from layerlens.errors import OptionError, check_count, check_seed, choose
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec


@method(
    family="perturbation",
    passes="400 forward passes (samples)",
    needs="a baseline",
    source="Petsiuk, Das & Saenko 2018",
)
def rise(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    samples: int = 400,
    cells: int | Mapping[str, int] = 7,
    probability: float = 0.5,
    until: float | None = None,
    sampling: Sampling = "balanced",
    estimate: Literal["regression", "mean"] = "regression",
    baseline: Baseline = "zero",
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Estimate how the score depends on which places are kept, from random smooth masks.

    The input is multiplied with masks that keep each cell of a coarse grid with some probability, enlarged linearly and
    shifted at random. As published the value of a place is the mean score of the masks that keep it, sum over i of S_i
    M_i / (N p) (Petsiuk et al. 2018, eq. 6): `sampling="random", estimate="mean"`. Most of its noise is the score's
    dependence on all other places. The default removes that: masks come in pairs with their complements, so that each
    place is kept as much as it is removed, and what depends on an even number of cells cancels; and the map is the
    ridge regression of the scores on the masks, whose penalty generalized cross-validation chooses (Golub, Heath &
    Wahba 1979).

    Several inputs, such as a picture and words, are masked all at once, each by its own grid, and one regression
    explains the score by all of them: values are then the score for each cell, token or column that is kept, so that
    those of different inputs compare.

    Args:
        samples: number of masks, the same for all samples of the batch.
        cells: cells of the grid along the shorter side, or a dict of those by input name; each token or column is a
            cell.
        probability: probability that a cell is kept; 0.5 for balanced sampling.
        sampling: `"balanced"` or `"random"`.
        estimate: `"regression"`: signed, score per place kept, of several inputs per cell kept; or `"mean"`: the
            published one.

    Returns:
        An `Attribution` shaped like the input, with its standard error. All channels of a place have its number. The
        error is that of the regression with its penalty (jackknife), NaN with fewer than 32 masks. Its check is the
        `"share kept by the penalty"` of each sample: with .9 or more, intervals hold the values without a penalty too;
        with less, values are about that share of those, and their intervals miss them: take more masks.

    Raises:
        OptionError: when an option is out of range, or the baseline does not fit.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False))
        >>> _ = net[1].weight.data.zero_()[0, :8].fill_(1.0)
        >>> found = rise(net, torch.ones(1, 1, 8, 8), target=0, cells=4).tensor[0, 0]
        >>> bool(found[0].mean() > found[1:].mean())
        True
    """
    check_count("samples", samples)
    check_seed(seed)
    choose("estimate", estimate, ("regression", "mean"))
    if not 0 < probability < 1 or (sampling == "balanced" and probability != 0.5):
        raise OptionError(f"probability={probability!r} must be between 0 and 1, and 0.5 for balanced sampling.")
    with scoring(model, x, target, where=where, forward=forward, grad=False, whole="alone") as scorer:
        coalitions = Coalitions(scorer, baseline, batch_size)
        grids = by_leaf(scorer.inputs, scorer.leaves, "cells", cells)
        masks = {name: _masks(leaf, grids[name]) for name, leaf in scorer.leaves.items()}
        draw(list(masks.values()), samples, probability, sampling, seed)
        scores = torch.zeros(samples, coalitions.batch, dtype=torch.float64)
        coarse = {name: torch.zeros(samples, one.coarse) for name, one in masks.items()}
        values, errors, degrees, done = {}, {}, 1.0, 0
        sums = {name: torch.zeros(2, coalitions.batch, *one.places, dtype=torch.float64) for name, one in masks.items()}
        made: dict[str, torch.Tensor] = {}
        checks: dict[str, torch.Tensor] = {}

        def make(chosen: torch.Tensor) -> dict[str, torch.Tensor]:
            made.update({name: one(done + chosen) for name, one in masks.items()})
            return {name: one.reshape(len(chosen), *_shape(scorer.leaves[name])) for name, one in made.items()}

        texts = [name for name, leaf in scorer.leaves.items() if leaf.layer is not None and leaf.value.ndim == 3]
        used = {name: one for name in texts if (one := used_places(scorer, name)) is not None}
        rounds = Rounds("rise", "samples", samples, until, first=100, step=2)
        for most in rounds:
            for chosen, kept_scores in coalitions.every(most - done, make, "RISE"):
                scores[done + chosen] = kept_scores.double().cpu()
                for name, mask in made.items():
                    coarse[name][done + chosen] = masks[name].pooled(mask)
                    if estimate == "mean":
                        weighted = torch.einsum("mb,m...->mb...", scores[done + chosen], mask.double()) / probability
                        sums[name] += torch.stack([weighted.sum(dim=0), weighted.square().sum(dim=0)])
            done = most
            if estimate == "mean":
                found, degrees = {name: _mean_and_error(one, done) for name, one in sums.items()}, max(1.0, done - 1)
            else:
                pooled = {name: one[:done] for name, one in coarse.items()}
                found, degrees, checks[KEPT] = _fitted(masks, pooled, scores[:done], used)
            means, spreads = ({name: pair[part] for name, pair in found.items()} for part in (0, 1))
            rounds.look(means, spreads, degrees)
        for name, leaf in scorer.leaves.items():
            mean, error = (part.to(coalitions.score).reshape(len(part), *_shape(leaf)) for part in found[name])
            if name in used:
                mean, error = mean * used[name].unsqueeze(-1), error * used[name].unsqueeze(-1)
            spread = mean.expand(leaf.value.shape).clone()
            values[name] = spread / leaf.value.shape[-1] if leaf.layer is not None else spread
            errors[name] = error[..., 0] if leaf.layer is not None else error.expand(leaf.value.shape).clone()
        warn_of_zeros(values, "rise")
        per = "cell" if len(masks) > 1 else "place"
        return scorer.attribution(
            values,
            method="rise",
            settings={
                **rounds.settings,
                "cells": dict(cells) if isinstance(cells, Mapping) else cells,
                "probability": probability,
                "sampling": sampling,
                "estimate": estimate,
                "baseline": coalitions.label,
                "seed": seed,
                "batch_size": coalitions.batch_size,
            },
            score=coalitions.score,
            signed=estimate == "regression",
            units=f"score per {per} kept" if estimate == "regression" else "score",
            standard_error=errors,
            degrees=degrees,
            checks=rounds.checks(checks),
        )


Sampling = Literal["balanced", "random"]

CELLS = 7
"""Cells of the grid where a dict names none for an input."""

FINE = 4
"""Places of the pooled masks in each cell, along each axis."""

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class SmoothMasks:
    """Smooth masks over places, made by index once they are drawn, see `draw`.

    Args:
        places: sizes of the axes of places, at most three.
        cells: cells of the grid along the shortest axis; 0 for a cell at every place, without shifts.

    Attributes:
        wide: cells in a mask.
        kept: which cells each mask keeps, `(masks, wide)`.
        shifts: how far the grid of each is shifted, `(masks, axes)`, as shares of a cell.
    """

    kept: torch.Tensor
    shifts: torch.Tensor

    def __init__(self, places: list[int], cells: int) -> None:
        self.places = places
        cell = min(places) / cells if cells else 1.0
        self._grid = [max(1, round(size / cell)) if cells else size for size in places]
        self._smooth = bool(cells) and max(self._grid) > 1 and len(places) in MODES
        self._drawn = [size + 1 for size in self._grid] if self._smooth else self._grid
        self.wide = torch.Size(self._drawn).numel()
        self._pool = [
            min(size, FINE * cells_) if self._smooth else size for size, cells_ in zip(places, self._grid, strict=True)
        ]

    @property
    def coarse(self) -> int:
        """Numbers in a pooled mask."""
        return torch.Size(self._pool).numel()

    @property
    def fine(self) -> float:
        """Numbers of a pooled mask in each cell."""
        return self.coarse / torch.Size(self._grid).numel() if self._smooth else 1.0

    def __call__(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return the masks `(m, *places)`, from 0 to 1."""
        kept = self.kept[chosen].float().reshape(len(chosen), *self._drawn)
        if not self._smooth:
            return kept.reshape(len(chosen), *self.places)
        steps = [-(-size // cells) for size, cells in zip(self.places, self._grid, strict=True)]
        large = F.interpolate(
            kept.unsqueeze(1),
            size=[step * (cells + 1) for step, cells in zip(steps, self._grid, strict=True)],
            mode=MODES[len(self.places)],
            align_corners=False,
        ).squeeze(1)
        offsets = (self.shifts[chosen] * torch.tensor(steps)).long().tolist()
        cut = [
            mask[tuple(slice(start, start + size) for start, size in zip(offset, self.places, strict=True))]
            for mask, offset in zip(large, offsets, strict=True)
        ]
        return torch.stack(cut)

    def pooled(self, masks: torch.Tensor) -> torch.Tensor:
        """Return masks at a few places in each cell, `(m, coarse)`."""
        if not self._smooth:
            return masks.flatten(1)
        return _resized(masks, self._pool, "area").flatten(1)

    def enlarged(self, values: torch.Tensor) -> torch.Tensor:
        """Enlarge numbers by pooled place, `(batch, coarse)`, to every place, `(batch, *places)`."""
        if not self._smooth:
            return values.reshape(len(values), *self.places)
        return _resized(values.reshape(len(values), *self._pool), self.places, MODES[len(self.places)])


def draw(masks: Sequence[SmoothMasks], count: int, probability: float, sampling: Sampling, seed: int) -> None:
    """Draw which cells are kept, over all inputs at once.

    Args:
        masks: masks of each input.
        count: number of masks.
        probability: probability that a cell is kept.
        sampling: `"random"`: each mask by itself; `"balanced"`: each mask is followed by its complement under the same
            shift.
        seed: seed of cells and shifts.
    """
    choose("sampling", sampling, ("balanced", "random"))
    generator, other = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed ^ 1)
    wide, axes = [one.wide for one in masks], [len(one.places) for one in masks]
    drawn = count if sampling == "random" else (count + 1) // 2
    kept = torch.rand(drawn, sum(wide), generator=generator) < probability
    shifts = torch.rand(drawn, sum(axes), generator=other)  # apart, so that more masks begin with the same ones
    if sampling == "balanced":
        kept = torch.stack([kept, ~kept], dim=1).flatten(0, 1)[:count]
        shifts = shifts.repeat_interleave(2, dim=0)[:count]
    for own, cells, moved in zip(masks, torch.split(kept, wide, dim=1), torch.split(shifts, axes, dim=1), strict=True):
        own.kept, own.shifts = cells, moved


def _masks(leaf: Leaf, cells: int | None) -> SmoothMasks:
    """Return the masks of a leaf, with a cell for each token and each column."""
    cells = CELLS if cells is None else cells
    check_count("cells", cells)
    separate = leaf.layer is not None or leaf.value.ndim <= 2
    return SmoothMasks([leaf.value.shape[1 + axis] for axis in place_axes(leaf)] or [1], 0 if separate else cells)


def _shape(leaf: Leaf) -> list[int]:
    """Return the shape of the mask of a sample; () where each has a single id."""
    axes = place_axes(leaf)
    return [leaf.value.shape[1 + axis] if axis in axes else 1 for axis in range(leaf.value.ndim - 1)]


def _mean_and_error(sums: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and its standard error, from sums of numbers and of their squares."""
    mean, square = sums / count
    return mean, ((square - mean**2).clamp_min(0) / max(1, count - 1)).sqrt()


def _fitted(
    masks: Mapping[str, SmoothMasks],
    coarse: Mapping[str, torch.Tensor],
    scores: torch.Tensor,
    used: Mapping[str, torch.Tensor],
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], float, torch.Tensor]:
    """Fit the scores by the masks of all inputs; return the coefficients and their errors at every place, by input.

    Their degrees of freedom, and the share of the fit of each sample that the penalty keeps, are the other results.

    Of several inputs the penalty, and the values, are for each cell: one that lies in a mask as n numbers counts as
    one number, like a token. Places that a sample does not use are not in its fit.
    """
    sizes = {name: one.fine**-0.5 if len(masks) > 1 else 1.0 for name, one in masks.items()}
    design = torch.cat([sizes[name] * one.double() for name, one in coarse.items()], dim=1)
    wide = [one.coarse for one in masks.values()]
    batch = scores.shape[1]
    known = [used[name].cpu() if name in used else torch.ones(batch, one.coarse) for name, one in masks.items()]
    kept, which = torch.unique(torch.cat(known, dim=1).double(), dim=0, return_inverse=True)
    values, errors = (torch.zeros(batch, sum(wide), dtype=torch.float64) for _ in range(2))
    degrees, shares = [], torch.zeros(batch, dtype=torch.float64)
    for number, places in enumerate(kept):
        own = which == number
        values[own], errors[own], free, shares[own] = ridge_map(design * places, scores[:, own])
        degrees.append(free)
    fitted = [torch.split(part, wide, dim=1) for part in (values, errors)]
    found = {}
    for (name, one), mean, error in zip(masks.items(), *fitted, strict=True):
        found[name] = one.enlarged(mean / sizes[name]), one.enlarged(error / sizes[name])
    return found, min(degrees), shares


def _resized(values: torch.Tensor, size: list[int], mode: str) -> torch.Tensor:
    corners = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(values.unsqueeze(1), size=size, mode=mode, **corners).squeeze(1)


KEPT = "share kept by the penalty"
FEWEST = 32
"""Fewest masks from whose fit a standard error is read."""

PLAIN = 6
"""Masks for each of their directions from which a fit takes no penalty, where the directions are of like size."""

PENALTIES = torch.logspace(-6, 2, 33, dtype=torch.float64)
"""Relative to the largest eigenvalue of the masks' products."""


def ridge_map(masks: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float, torch.Tensor]:
    """Fit a linear model of the scores; return coefficients and standard errors, `(batch, places)`, and their degrees.

    The last result is the share of the fit that the penalty keeps, `(batch,)`: trace(H) over the rank of the masks.

    Generalized cross-validation chooses the penalty k of each sample, which minimizes n |residual|^2 / trace(I - H)^2.
    Where masks are at least `PLAIN` times as many as columns, k is the smallest: a penalty would pull values, and their
    intervals, to zero for little less noise.
    The error is from leaving out a pair of masks at a time (jackknife), in closed form: without masks Z of residuals r
    and hat matrix H = Z A^-1 Z^T + 1 / n the coefficients move by A^-1 Z^T (I - H)^-1 r, A the products of all centered
    masks plus k (Bell & McCaffrey 2002, CR3).

    Args:
        masks: `(n, places)`.
        scores: `(n, batch)`.
    """
    count, pairs = len(masks), len(masks) // 2
    design, answer = masks - masks.mean(dim=0), scores - scores.mean(dim=0)
    left, size, right = _decomposed(design)
    turned = left.T @ answer  # (rank, batch)
    outside = (answer - left @ turned).square().sum(dim=0)
    shrink = PENALTIES[:, None] * size.max() / (size + PENALTIES[:, None] * size.max())  # (penalties, rank)
    free = (count - 1 - (1 - shrink).sum(dim=1)).clamp_min(1e-9)
    best = ((shrink.square() @ turned.square() + outside) / free[:, None] ** 2).argmin(dim=0)
    if count >= PLAIN * len(size) and 100 * size.min() > size.max():
        best = torch.zeros_like(best)
    kept = 1 - shrink[best]  # (batch, rank), eigenvalues of the hat matrix
    values = (kept * turned.T / size.sqrt()) @ right.T
    if count < FEWEST:
        return values, torch.full_like(values, torch.nan), 1.0, kept.mean(dim=1)
    moves: list[torch.Tensor] = []
    own = left[: 2 * pairs].reshape(pairs, 2, -1)
    for held, reached in zip(kept, turned.T, strict=True):
        residual = (own @ (held * reached)).neg() + answer.T[len(moves), : 2 * pairs].reshape(pairs, 2)
        hat = torch.einsum("pir,r,pjr->pij", own, held, own) + 1 / count
        alone = torch.linalg.solve(torch.eye(2).to(hat) - hat, residual.unsqueeze(-1)).squeeze(-1)  # (pairs, 2)
        moves.append(torch.einsum("pir,pi,r->pr", own, alone, held / size.sqrt()) @ right.T)
    moved = torch.stack(moves)  # (batch, pairs, places)
    error = ((pairs - 1) / pairs * (moved - moved.mean(dim=1, keepdim=True)).square().sum(dim=1)).sqrt()
    return values, error, max(1.0, pairs - 1 - float(kept.sum(dim=1).max())), kept.mean(dim=1)


def _decomposed(design: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return U `(n, rank)`, the eigenvalues of the products `(rank,)` and V `(places, rank)` of X = U S V^T."""
    wide = design.shape[1] > len(design)
    size, vectors = torch.linalg.eigh(design @ design.T if wide else design.T @ design)
    known = size > size.max().clamp_min(1e-12) * 1e-12
    known[-1] = True  # masks that are all the same have one direction, of size 0
    size, vectors = size[known].clamp_min(1e-12), vectors[:, known]
    other = (design.T if wide else design) @ vectors / size.sqrt()
    return (vectors, size, other) if wide else (other, size, vectors)
