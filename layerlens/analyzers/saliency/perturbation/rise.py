"""RISE: the score under random smooth masks, and where the masks were that raised it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.coalitions import Coalitions
from layerlens.analyzers.common.leaves.leaves import place_axes
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import scoring, warn_of_zeros
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
    cells: int = 7,
    probability: float = 0.5,
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
    dependence on all other places. The default removes that: masks come in pairs with their complements from a
    quasi-random sequence, so that each cell is kept equally often with every other; and the map is the ridge
    regression of the scores on the masks, whose penalty generalized cross-validation chooses (Golub, Heath & Wahba
    1979).

    Args:
        x: ... One tensor.
        samples: number of masks, the same for all samples of the batch.
        cells: cells of the grid along the shorter side; each token or column is a cell.
        probability: probability that a cell is kept; 0.5 for balanced sampling.
        sampling: `"balanced"` or `"random"`.
        estimate: `"regression"`: signed, score per place kept; or `"mean"`: the published one.

    Returns:
        An `Attribution` shaped like the input, with its standard error. All channels of a place have its number.

    Raises:
        OptionError: when an option is out of range, there are several inputs, or the baseline does not fit.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False))
        >>> _ = net[1].weight.data.zero_()[0, :8].fill_(1.0)
        >>> found = rise(net, torch.ones(1, 1, 8, 8), target=0, cells=4).tensor[0, 0]
        >>> bool(found[0].mean() > found[1:].mean())
        True
    """
    check_count("samples", samples)
    check_seed(seed)
    check_count("cells", cells)
    choose("estimate", estimate, ("regression", "mean"))
    if not 0 < probability < 1 or (sampling == "balanced" and probability != 0.5):
        raise OptionError(f"probability={probability!r} must be between 0 and 1, and 0.5 for balanced sampling.")
    with scoring(model, x, target, where=where, forward=forward, grad=False, whole="alone") as scorer:
        if len(scorer.leaves) > 1:
            raise OptionError(
                f"rise masks one input; the model takes {', '.join(scorer.leaves)}. shapley_sampling takes several."
            )
        coalitions = Coalitions(scorer, baseline, batch_size)
        ((name, leaf),) = scorer.leaves.items()
        axes = place_axes(leaf)
        places = [leaf.value.shape[1 + axis] for axis in axes] or [1]  # a single id for each sample
        separate = leaf.layer is not None or leaf.value.ndim <= 2
        masks = SmoothMasks(places, 0 if separate else cells, samples, probability, sampling, seed)
        shape = [leaf.value.shape[1 + axis] if axis in axes else 1 for axis in range(leaf.value.ndim - 1)]
        scores = torch.zeros(samples, coalitions.batch, dtype=torch.float64)
        coarse = torch.zeros(samples, masks.coarse)
        first, second = (torch.zeros(coalitions.batch, *places, dtype=torch.float64) for _ in range(2))

        def make(chosen: torch.Tensor) -> dict[str, torch.Tensor]:
            made.clear()
            made.append(masks(chosen))
            return {name: made[0].reshape(len(chosen), *shape)}

        made: list[torch.Tensor] = []
        for chosen, kept_scores in coalitions.every(samples, make, "RISE"):
            scores[chosen] = kept_scores.double().cpu()
            coarse[chosen] = masks.pooled(made[0])
            if estimate == "mean":
                weighted = torch.einsum("mb,m...->mb...", scores[chosen], made[0].double()) / probability
                first += weighted.sum(dim=0)
                second += weighted.square().sum(dim=0)
        if estimate == "mean":
            mean = first / samples
            error = ((second / samples - mean**2).clamp_min(0) / max(1, samples - 1)).sqrt()
        else:
            mean, error = (masks.enlarged(part) for part in ridge_map(coarse.double(), scores))
        values = mean.to(coalitions.score).reshape(len(mean), *shape).expand(leaf.value.shape).clone()
        warn_of_zeros({name: values}, "rise")
        errors = error.reshape(len(error), *shape)
        return scorer.attribution(
            {name: values / leaf.value.shape[-1] if leaf.layer is not None else values},
            method="rise",
            settings={
                "samples": samples,
                "cells": cells,
                "probability": probability,
                "sampling": sampling,
                "estimate": estimate,
                "baseline": coalitions.label,
                "seed": seed,
                "batch_size": coalitions.batch_size,
            },
            score=coalitions.score,
            signed=estimate == "regression",
            units="score per place kept" if estimate == "regression" else "score",
            standard_error={name: (errors[..., 0] if leaf.layer is not None else errors.expand(values.shape)).clone()},
        )


Sampling = Literal["balanced", "random"]

FINE = 4
"""Places of the pooled masks in each cell, along each axis."""

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class SmoothMasks:
    """Smooth masks over places, made by index.

    Args:
        places: sizes of the axes of places, at most three.
        cells: cells of the grid along the shortest axis; 0 for a cell at every place, without shifts.
        count: number of masks.
        probability: probability that a cell is kept.
        sampling: `"random"`: each cell by itself; `"balanced"`: from a scrambled Sobol sequence, each mask followed by
            its complement under the same shift.
        seed: seed of cells and shifts.
    """

    def __init__(
        self, places: list[int], cells: int, count: int, probability: float, sampling: Sampling, seed: int
    ) -> None:
        choose("sampling", sampling, ("balanced", "random"))
        self.places = places
        cell = min(places) / cells if cells else 1.0
        self._grid = [max(1, round(size / cell)) if cells else size for size in places]
        self._smooth = bool(cells) and max(self._grid) > 1 and len(places) in MODES
        grid = [size + 1 for size in self._grid] if self._smooth else self._grid
        generator = torch.Generator().manual_seed(seed)
        wide = torch.Size(grid).numel()
        if sampling == "random":
            kept = torch.rand(count, wide, generator=generator) < probability
            shifts = torch.rand(count, len(places), generator=generator)
        else:
            half = (count + 1) // 2
            engine = torch.quasirandom.SobolEngine(wide, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
            one = engine.draw(half) < 0.5
            kept = torch.stack([one, ~one], dim=1).flatten(0, 1)[:count]
            shifts = torch.rand(half, len(places), generator=generator).repeat_interleave(2, dim=0)[:count]
        self._kept = kept.float().reshape(count, *grid)
        self._shifts = shifts
        self._pool = [
            min(size, FINE * cells_) if self._smooth else size for size, cells_ in zip(places, self._grid, strict=True)
        ]

    @property
    def coarse(self) -> int:
        """Numbers in a pooled mask."""
        return torch.Size(self._pool).numel()

    def __call__(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return the masks `(m, *places)`, from 0 to 1."""
        if not self._smooth:
            return self._kept[chosen].reshape(len(chosen), *self.places)
        steps = [-(-size // cells) for size, cells in zip(self.places, self._grid, strict=True)]
        large = F.interpolate(
            self._kept[chosen].unsqueeze(1),
            size=[step * (cells + 1) for step, cells in zip(steps, self._grid, strict=True)],
            mode=MODES[len(self.places)],
            align_corners=False,
        ).squeeze(1)
        offsets = (self._shifts[chosen] * torch.tensor(steps)).long().tolist()
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


def _resized(values: torch.Tensor, size: list[int], mode: str) -> torch.Tensor:
    corners = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(values.unsqueeze(1), size=size, mode=mode, **corners).squeeze(1)


BLOCKS = 8
"""Groups of masks from whose fits the standard error is read."""

PENALTIES = torch.logspace(-6, 2, 33, dtype=torch.float64)
"""Relative to the largest eigenvalue of the masks' products."""


def ridge_map(masks: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a linear model of the scores; return its coefficients and their standard errors, both `(batch, places)`.

    Generalized cross-validation chooses the penalty.

    Args:
        masks: `(n, places)`.
        scores: `(n, batch)`.
    """
    penalty = _penalty(masks, scores)
    values = _fit(masks, scores, penalty)
    group = torch.arange(len(masks)) // 2 % BLOCKS  # a mask and its complement stay together
    if len(masks) < 4 * BLOCKS:
        return values, torch.full_like(values, torch.nan)
    parts = torch.stack([_fit(masks[group != one], scores[group != one], penalty) for one in range(BLOCKS)])
    error = ((BLOCKS - 1) / BLOCKS * (parts - parts.mean(dim=0)).square().sum(dim=0)).sqrt()
    return values, error


def _fit(masks: torch.Tensor, scores: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """`(batch, places)`: M^T (M M^T + k I)^-1 S of centered masks and scores, with a penalty k for each sample."""
    design, answer = masks - masks.mean(dim=0), scores - scores.mean(dim=0)
    values, vectors = torch.linalg.eigh(design @ design.T)
    turned = vectors.T @ answer  # (n, batch)
    fitted: torch.Tensor = design.T @ (vectors @ (turned / (values.clamp_min(0)[:, None] + penalty)))
    return fitted.T


def _penalty(masks: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The penalty of each sample, `(batch,)`, that minimizes n |residual|^2 / trace(I - H)^2."""
    design, answer = masks - masks.mean(dim=0), scores - scores.mean(dim=0)
    values, vectors = torch.linalg.eigh(design @ design.T)
    values = values.clamp_min(0)
    turned = (vectors.T @ answer).square()  # (n, batch)
    scale = values.max().clamp_min(1e-12)
    shrink = PENALTIES[:, None] * scale / (values + PENALTIES[:, None] * scale)  # (penalties, n), 1 - eigenvalue of H
    free = (shrink.sum(dim=1) - 1).clamp_min(1e-9)  # one is spent on the mean
    loss = (shrink.square() @ turned) / free[:, None] ** 2
    best: torch.Tensor = PENALTIES[loss.argmin(dim=0)] * scale
    return best
