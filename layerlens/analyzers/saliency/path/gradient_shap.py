"""Expected gradients (GradientSHAP): integrated gradients from baselines drawn at random."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.features.references import Baselines, references
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.rounds import Rounds
from layerlens.analyzers.common.scorer import Leaves, Scorer, gradients, scoring, warn_of_zeros
from layerlens.errors import OptionError, check_count, check_seed
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from ..gradient.noise import SHARE, Deviations, noise_scales, noisy_copies
from .completeness import completeness_gap


@method(
    family="path",
    passes="64 gradients (samples), 1 forward pass a reference",
    needs="references (noise when none are given)",
    source="Lundberg & Lee 2017; Erion et al. 2021",
    by_lengths=True,
)
def gradient_shap(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    baselines: Baselines = None,
    samples: int = 64,
    until: float | None = None,
    stdevs: Deviations = 0.0,
    multiply_by_inputs: bool = True,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Average integrated gradients over references x', by random points; the values sum to S(x) - E[S(x')].

    E over x' and a of (x_i - x'_i) dS/dx_i at x' + a (x - x'), a uniform in 0..1 (Erion et al. 2021, eq. 3). Every
    reference gets equally many points, one in each of equal parts of the path: the same expectation as with independent
    draws, with a smaller error. `captum.attr.GradientShap` draws both independently, and runs all samples in one pass.

    Args:
        samples: number of points for each sample of the batch, rounded up to a multiple of the references.
        until: ... Each round halves the parts of the paths, so that the number of points doubles; the values of all
            points are kept in memory, and `samples` is rounded down to a number that doubling reaches.

    Returns:
        ... It has the standard error of its values: over the points on the paths from the references that were given,
        and over the references too where these are drawn, or more than half as many as points (too wide then). Its
        check is the relative `"completeness gap"`.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> gradient_shap(net, torch.tensor([[2.0, 5.0]]), baselines=torch.tensor([[1.0, 1.0], [1.0, 3.0]])).tensor
        tensor([[ 3., -3.]])
    """
    check_count("samples", samples)
    check_seed(seed)
    if until is not None and baselines is None:
        raise OptionError(
            "until= needs the references that are meant, baselines=: the error of eight drawn ones does not fall with "
            "more points."
        )
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        ends = scorer.values()
        score, batch = first_score(scorer, ends, batch_size)
        starts, label = references(scorer, baselines, seed)
        scales = noise_scales("gradient_shap", scorer, ends, SHARE, 0.0 if stdevs is None else stdevs)
        baseline_score = _baseline_score(scorer, starts, batch)
        tokens = [name for name, leaf in scorer.leaves.items() if leaf.layer is not None]
        each = -(-samples // len(starts))
        least = min(each, max(4, -(-16 // len(starts))))
        doublings = 0 if until is None else (each // least).bit_length() - 1
        first = (each >> doublings) * len(starts)
        rounds = Rounds("gradient_shap", "samples", first << doublings, until, first=first, step=None)
        paths = Paths(scorer, ends, starts, scales, tokens, multiply_by_inputs, keep=until is not None)
        for count in rounds:
            paths.run(count // len(starts), batch, seed)
            means = {name: part / count for name, part in paths.total.items()}
            errors, degrees = paths.errors(drawn=baselines is None)
            rounds.look(
                {name: part.sum(dim=-1) if name in tokens else part for name, part in means.items()}, errors, degrees
            )
        complete = means if multiply_by_inputs else {name: part / count for name, part in paths.products.items()}
        gap = completeness_gap(complete, paths.end_score / count if paths.noisy else score, baseline_score)
        warn_of_zeros(means, "gradient_shap")
        return scorer.attribution(
            {name: part.to(ends[name].dtype) for name, part in means.items()},
            method="gradient_shap",
            settings={
                "baselines": label,
                **rounds.settings,
                "stdevs": stdevs,
                "multiply_by_inputs": multiply_by_inputs,
                "seed": seed,
                "batch_size": batch,
            },
            score=score,
            units="score" if multiply_by_inputs else "score per unit of input",
            checks=rounds.checks({"completeness gap": gap}),
            standard_error=None
            if errors is None
            else {name: part.to(ends[name].dtype) for name, part in errors.items()},
            degrees=degrees,
        )


def _baseline_score(scorer: Scorer, starts: list[Leaves], batch: int) -> torch.Tensor:
    """The mean score of the references, `(batch,)`."""
    found = torch.zeros(len(scorer.rows), dtype=torch.float64, device=scorer.rows.device)
    for rows in torch.split(scorer.rows, batch):
        for own in torch.split(torch.arange(len(starts)), max(1, batch // len(rows))):
            values = {name: part.flatten(0, 1) for name, part in _stacked(starts, own, rows).items()}
            with torch.no_grad():
                scores = scorer(values, rows.repeat(len(own)))
            found[rows] += scores.double().reshape(len(own), len(rows)).sum(dim=0) / len(starts)
    return found


class Paths:
    """Sums over evenly spread points of the paths from every reference.

    Args:
        scorer: scores a borrowed model.
        ends: the leaves as they are.
        starts: the references.
        scales: standard deviation of the noise on the input, by leaf.
        tokens: leaves of which a value is the sum over the last axis, which errors are then of.
        multiply_by_inputs: whether values are multiplied by x - x'.
        keep: whether the values of all points are kept, so that more can follow.

    Attributes:
        total: sums of the values of all points.
        products: sums of the values times x - x'.
        end_score: sum of the scores of noisy inputs, `(batch,)`.
        noisy: whether the inputs get noise.
    """

    def __init__(
        self,
        scorer: Scorer,
        ends: Leaves,
        starts: list[Leaves],
        scales: Leaves,
        tokens: list[str],
        multiply_by_inputs: bool,
        *,
        keep: bool,
    ) -> None:
        self._scorer, self._ends, self._starts, self._scales = scorer, ends, starts, scales
        self._tokens, self._multiply, self._keep, self._each = tokens, multiply_by_inputs, keep, 0
        self._kept: dict[str, torch.Tensor] = {}
        self.noisy = any(bool(scale.any()) for scale in scales.values())
        self.total = {name: torch.zeros_like(end, dtype=torch.float64) for name, end in ends.items()}
        self.products = {name: torch.zeros_like(part) for name, part in self.total.items()}
        self.end_score = torch.zeros(len(scorer.rows), dtype=torch.float64, device=scorer.rows.device)
        self._clear()

    def _clear(self) -> None:
        """Forget how the points scatter."""
        numbers = {name: part[..., 0] if name in self._tokens else part for name, part in self.total.items()}
        self._differences = {name: torch.zeros_like(part) for name, part in numbers.items()}
        self._of_path = {name: torch.zeros_like(part) for name, part in numbers.items()}
        self._mean_squares = {name: torch.zeros_like(part) for name, part in numbers.items()}

    @property
    def _order(self) -> int:
        """The order of the differences between points from which errors are."""
        return min(2, self._each - 1)

    def run(self, each: int, batch: int, seed: int) -> None:
        """Add points until each path has `each` of them, `batch` rows in a pass.

        Args:
            each: number of points; twice that of the last run, if there was one.
            batch: rows in a pass.
            seed: seed of the points, and of the noise.
        """
        points, level = (part.flatten() for part in _points(len(self._starts), each, seed))
        new = torch.ones(len(points), dtype=torch.bool) if not self._each else level == level.max()
        self._each = each
        if self._keep:
            self._make_room(new)
        for rows in torch.split(self._scorer.rows, batch):
            noise = [torch.Generator().manual_seed(seed ^ (2 * one + 1)) for one in range(int(level.max()) + 1)]
            before: dict[str, torch.Tensor] = {}
            chunks = torch.split(new.nonzero().flatten(), max(1, batch // len(rows)))
            for own in track(chunks, "gradient_shap"):
                tops = {name: end[rows].repeat(len(own), *[1] * (end.ndim - 1)) for name, end in self._ends.items()}
                if self.noisy:
                    drawing = [noise[one] for one in level[own].tolist()]
                    tops = noisy_copies(self._ends, self._scales, rows, len(own), drawing)
                    with torch.no_grad():
                        scores = self._scorer(tops, rows.repeat(len(own)))
                    self.end_score[rows] += scores.double().reshape(len(own), len(rows)).sum(dim=0)
                slopes, spans = _gradients(self._scorer, tops, self._starts, rows, own // each, points[own])
                for name, slope in slopes.items():
                    product = slope * spans[name]
                    part = product if self._multiply else slope
                    self.total[name][rows] += part.sum(dim=0)
                    self.products[name][rows] += product.sum(dim=0)
                    part = part.sum(dim=-1) if name in self._tokens else part
                    if self._keep:
                        self._kept[name][own[:, None].to(rows.device), rows] = part.to(self._kept[name].dtype)
                    else:
                        before[name] = self._scatter(name, rows, own, part, before.get(name))
        if self._keep:
            self._scatter_kept(batch)

    def _make_room(self, new: torch.Tensor) -> None:
        """Move the values of earlier points between those of new ones, `(points, batch, ...)`."""
        for name, number in self._differences.items():
            moved = torch.zeros(len(new), *number.shape, dtype=self._ends[name].dtype, device=number.device)
            if name in self._kept:
                moved[~new] = self._kept[name]
            self._kept[name] = moved

    def _scatter_kept(self, batch: int) -> None:
        """Find how all points scatter."""
        self._clear()
        rows = self._scorer.rows
        for name, kept in self._kept.items():
            before = None
            for own in torch.split(torch.arange(len(kept)), max(1, batch // len(rows))):
                before = self._scatter(name, rows, own, kept[own].double(), before)

    def _scatter(
        self, name: str, rows: torch.Tensor, own: torch.Tensor, part: torch.Tensor, before: torch.Tensor | None
    ) -> torch.Tensor:
        """Add how the points `own` scatter; return the last ones, which the next are compared with."""
        for number, value in zip(own.tolist(), part, strict=True):
            self._of_path[name][rows] += value
            if (number + 1) % self._each == 0:
                self._mean_squares[name][rows] += (self._of_path[name][rows] / self._each).square()
                self._of_path[name][rows] = 0
        joined = part if before is None else torch.cat([before, part])
        if self._order and len(joined) > self._order:
            differences = joined.diff(n=self._order, dim=0)
            last = own[-1] - torch.arange(len(differences)).flip(0)
            place = last % self._each
            weight = (place >= self._order).double()  # those across two paths do not count
            weight += (place == self._each - 1).double()  # the last also for the end of the path, the first for its
            weight += (place == 2).double() * (self._order == 2)  # start: one difference for each point
            norm = 6 if self._order == 2 else 2
            squares = torch.tensordot(weight.to(differences), differences.square(), dims=1)
            self._differences[name][rows] += squares / norm
        return joined[-2:]

    def errors(self, drawn: bool) -> tuple[Leaves | None, float | None]:
        """Return the standard errors of the means by leaf, and their degrees of freedom; None for one point.

        Of references that were drawn, and of those with a point each, from how the means of their paths scatter; of
        given ones from second differences along each path, which the slope of the integrand does not enter.

        Args:
            drawn: whether the references are random.
        """
        paths, each = len(self._starts), self._each
        if paths > 1 and (drawn or each == 1):
            means = {name: part / paths / each for name, part in self.total.items()}
            means = {name: part.sum(dim=-1) if name in self._tokens else part for name, part in means.items()}
            spread = {name: self._mean_squares[name] / paths - mean.square() for name, mean in means.items()}
            return {name: (part.clamp_min(0) / (paths - 1)).sqrt() for name, part in spread.items()}, paths - 1
        if each == 1:
            return None, None
        count = paths * each
        errors = {name: part.sqrt() / count for name, part in self._differences.items()}
        return errors, paths * (each - self._order)


def _points(paths: int, each: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points of 0..1, one in each of equal parts, and by which halving each was added, `(paths, each)`.

    The parts of an odd number get a point each; half parts keep the point of the whole, which is in one of them, and
    get one in the other. So those of half as many are among them, and each is still uniform in its part.
    """
    generator = torch.Generator().manual_seed(seed)
    halvings = (each & -each).bit_length() - 1
    count = each >> halvings
    points = (torch.arange(count) + torch.rand(paths, count, generator=generator, dtype=torch.float64)) / count
    level = torch.zeros(paths, count, dtype=torch.long)
    for halving in range(1, halvings + 1):
        second = (points * count - torch.arange(count) >= 0.5).long()
        count *= 2
        free = torch.arange(0, count, 2) + 1 - second
        added = (free + torch.rand(paths, count // 2, generator=generator, dtype=torch.float64)) / count
        pairs = torch.stack([points, added], dim=-1)
        levels = torch.stack([level, torch.full_like(level, halving)], dim=-1)
        order = torch.stack([second, 1 - second], dim=-1)  # the point that is in the first half comes first
        points, level = (one.gather(-1, order).flatten(1) for one in (pairs, levels))
    return points, level


def _stacked(starts: list[Leaves], chosen: torch.Tensor, rows: torch.Tensor) -> Leaves:
    """The samples `rows` of the chosen references, `(chosen, rows, ...)` by leaf."""
    return {name: torch.stack([starts[place][name][rows] for place in chosen.tolist()]) for name in starts[0]}


def _gradients(
    scorer: Scorer,
    tops: Leaves,
    starts: list[Leaves],
    rows: torch.Tensor,
    chosen: torch.Tensor,
    fractions: torch.Tensor,
) -> tuple[Leaves, Leaves]:
    """dS/dx at points and x - x', each on the path from its reference, `(points, rows, ...)` by leaf, in float64."""
    wide = {name: start.double() for name, start in _stacked(starts, chosen, rows).items()}
    tall = {name: top.double().reshape(wide[name].shape) for name, top in tops.items()}
    mixed = {}
    for name, end in tall.items():
        own = fractions.to(end.device).reshape(-1, *[1] * (end.ndim - 1))
        mixed[name] = torch.lerp(wide[name], end, own).flatten(0, 1).to(tops[name].dtype)
    slopes = gradients(scorer, mixed, rows.repeat(len(fractions)))[1]
    return (
        {name: slope.double().reshape(wide[name].shape) for name, slope in slopes.items()},
        {name: end - wide[name] for name, end in tall.items()},
    )
