"""Checks by perturbation: another function behind perturbed samples, and a score that hangs on a few places."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from layerlens.analyzers.common.features.baselines import mixed
from layerlens.analyzers.common.scorer import Leaves, gradients
from layerlens.probes.probe import Probe

from .examined import Examined, Found, named, percent

POINTS = 9
"""Points along each path at which score and gradient are read."""

ROUNDS = (3, 6)
"""Times that the segment least like its gradients is cut in half: a 64th of the path is left, and a 512th."""

CLIFF, JUMP = 0.5, 0.05
"""Least share of all change that a 64th holds at a cliff, and a 512th at a jump."""

ALIKE = 0.3
"""Least cosine of two gradients of one function."""

SIZES = (0.002, 0.005, 0.01, 0.02, 0.05)
"""Shares of the places that are tried as a shortcut."""

MOST = 16
"""Most places of a shortcut that are left out one by one."""

FEWEST = 20
"""Fewest places of which a few can be a shortcut."""


def scaffold(examined: Examined) -> Found:
    """Scores along straight paths to perturbed samples, the gradients around their steepest piece, and the routes."""
    own_route, routes = _route(examined, examined.values), set[str]()
    cliffs = other = paths = 0
    worst: list[tuple[float, float]] = []  # share of the change, and cosine of the gradients
    for end in _perturbed(examined):
        routes |= set(own_route) ^ set(_route(examined, end))
        along = functools.partial(_between, examined.values, end)
        shares, low, high = _steepest(examined, along, end)
        steep = (shares[0] > CLIFF) | ((shares[1] > JUMP) & (shares[1] > shares[0] / 2))
        cosine = torch.ones(len(steep))
        if examined.differentiable and bool(steep.any()):
            cosine = _cosine(examined, along(low - 0.05), along(high + 0.05))
        paths += len(steep)
        cliffs += int(steep.sum())
        other += int((steep & (cosine < ALIKE)).sum())
        seen = zip(steep.tolist(), shares[0].tolist(), cosine.tolist(), strict=True)
        worst += [(share, like) for cliff, share, like in seen if cliff]
    text = f"none of {paths} paths to perturbed samples crosses a cliff"
    if worst:
        text = f"{cliffs} of {paths} paths to perturbed samples cross a cliff, and behind {other} the gradient differs"
        share, like = max(worst, key=lambda pair: pair[0] - pair[1])
        text += f" (cosine {like:.2f}; {percent(share)} of all change in a 64th of the path)"
    do = (
        "do not believe LIME, SHAP or occlusion here: lens.saliency(x, method='relevance') or 'gradient' stay at the "
        "input; lens.compare_routes(x, x_perturbed) shows layers"
    )
    if other * 3 >= paths:
        return (
            "serious",
            text,
            "perturbed samples are answered by another function (a scaffold, a detector of unusual inputs, a hard "
            "switch): methods that perturb explain that one",
            do,
        )
    if routes:
        text += f"; perturbed samples take another route through {named(sorted(routes))}"
    if cliffs * 3 >= paths or routes:
        return "worth knowing", text, "the model switches between inputs and perturbed inputs", do
    return "fine", text


def _steepest(
    examined: Examined, along: Callable[[torch.Tensor], Leaves], end: Leaves
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """The shares of all change in the steepest 64th and 512th of a path, and where that is, each `(batch,)`."""
    ends = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    points = [along(at.expand(len(examined.score))) for at in ends]
    scores = torch.stack([examined.run(point) for point in points]).cpu()  # (points, batch)
    change = scores.diff(dim=0)
    total = change.abs().sum(dim=0)
    missed = change.abs()
    if examined.differentiable:  # what the gradients at both ends of a segment do not predict
        step = {name: (end[name] - value).double() for name, value in examined.values.items()}
        slopes = torch.stack([_along(_slopes(examined, point), step) for point in points]).cpu()
        missed = (change - (slopes[1:] + slopes[:-1]) / 2 / (POINTS - 1)).abs()
    at = missed.argmax(dim=0)
    low, high = ends[at], ends[at + 1]
    below, above = (scores.gather(0, place.unsqueeze(0))[0] for place in (at, at + 1))
    shares = []
    for number in range(max(ROUNDS)):
        middle = (low + high) / 2
        score = examined.run(along(middle)).cpu()
        first = (score - below).abs() >= (above - score).abs()
        low, high = torch.where(first, low, middle), torch.where(first, middle, high)
        below, above = torch.where(first, below, score), torch.where(first, score, above)
        if number + 1 in ROUNDS:
            much = total > 1e-3 * examined.scale.cpu()
            shares.append(torch.where(much, (above - below).abs() / total.clamp_min(1e-300), 0.0))
    return shares, low, high


def _slopes(examined: Examined, point: Leaves) -> Leaves:
    """The gradient of each score by its own sample, at a changed batch."""
    return gradients(examined.scorer, point, examined.scorer.rows)[1]


def _along(slopes: Leaves, step: Leaves) -> torch.Tensor:
    """The slope along a step, `(batch,)`."""
    return torch.stack([(slopes[name].double() * step[name]).flatten(1).sum(dim=1) for name in step]).sum(dim=0)


def _perturbed(examined: Examined) -> Iterator[Leaves]:
    """Yield perturbed batches: twice a random half left out, as for SHAP, and noise, as for LIME."""
    draw = torch.Generator().manual_seed(examined.seed)
    values, rows, groups = examined.values, examined.scorer.rows, examined.groups
    for _ in range(2):
        keep = (torch.rand(len(rows), groups.count, generator=draw) > 0.5).float().to(rows.device)
        masks = groups.masks(keep, rows)
        yield {n: mixed(_instead(examined, n), v, masks[n]) for n, v in values.items()}
    yield {
        n: v + v.double().std(correction=0).to(v) * torch.randn(v.shape, generator=draw).to(v)
        if v.is_floating_point()
        else v
        for n, v in values.items()
    }


def _instead(examined: Examined, name: str) -> torch.Tensor:
    """What parts of a leaf become: as in `coalitions`; tokens the one before, as norms jump at an embedding of 0."""
    leaf = examined.scorer.leaves[name]
    return examined.coalitions.starts[name] if leaf.layer is None else leaf.value.roll(1, dims=1)


def _between(start: Leaves, end: Leaves, at: torch.Tensor) -> Leaves:
    """The point of each sample on the way, `at` from 0 to 1, `(batch,)`; whole numbers change halfway."""
    found = {}
    for name, value in start.items():
        share = at.clamp(0, 1).to(value.device).reshape(-1, *[1] * (value.ndim - 1))
        if value.is_floating_point():
            found[name] = value + share.to(value.dtype) * (end[name] - value)
        else:
            found[name] = torch.where(share < 0.5, value, end[name])
    return found


def _cosine(examined: Examined, first: Leaves, second: Leaves) -> torch.Tensor:
    """The cosine of the gradients at two points, `(batch,)`; 1 where neither has one."""
    flat = []
    for point in (first, second):
        slopes = _slopes(examined, point)
        flat.append(torch.cat([one.double().reshape(len(one), -1) for one in slopes.values()], dim=1))
    none = [(one == 0).all(dim=1) for one in flat]
    return torch.where(none[0] & none[1], 1.0, torch.cosine_similarity(flat[0], flat[1], dim=1)).cpu()


def _route(examined: Examined, values: Leaves) -> list[str]:
    """The layers that ran, with the number of their calls."""
    with torch.no_grad(), Probe(examined.model, lambda path, module: True, reduce=lambda output: None) as record:
        examined.run(values)
    return [f"{call.layer}#{call.index}" if call.index else call.layer for call in record.order]


def shortcut(examined: Examined) -> Found:
    """The few places that the map ranks first: whether they are enough, and whether the score needs them."""
    places, coalitions = examined.places, examined.coalitions
    if places.count < FEWEST:
        return (
            "not run",
            f"the input has {places.count} places, too few for a part of them to be a shortcut (at least {FEWEST})",
        )
    rows = examined.scorer.rows
    empty = coalitions.baseline_scores().double()
    whole = examined.score - empty
    if not bool((whole.abs() > 0.01 * examined.scale).any()):
        return "not run", "the score hardly changes when the whole input is removed"
    orders = [examined.map] + (
        [examined.of_groups(examined.slope_times_change, places)] if examined.differentiable else []
    )
    counts = sorted({max(1, round(share * places.count)) for share in SIZES})
    best = (0.0, 0, torch.zeros(0))
    for values in orders:
        ranked = values.abs().argsort(dim=1, descending=True)
        for count in counts:
            keep = torch.zeros(len(rows), places.count, device=rows.device).scatter_(1, ranked[:, :count], 1.0)
            enough, needed = (
                float(((change / whole).clamp(-9, 9)[whole != 0]).median())
                for change in (
                    coalitions(places.masks(keep, rows), rows).double() - empty,
                    examined.score - coalitions(places.masks(1 - keep, rows), rows).double(),
                )
            )
            alone = min(enough, needed, 2 - enough, 2 - needed)  # 1 where exactly these places make the score
            if alone > 0.85 and (not best[1] or count < best[1]):
                best = (alone, count, ranked[:, :count])
    if not best[1]:
        return "fine", f"no {counts[-1]} of {places.count} places make the score by themselves"
    alone, count, at = best
    if count <= MOST:  # what the map ranked among them by mistake
        keep = torch.zeros(len(rows), places.count, device=rows.device).scatter_(1, at, 1.0)
        some = coalitions(places.masks(keep, rows), rows).double()
        without = [
            coalitions(places.masks(keep.scatter(1, at[:, k : k + 1], 0.0), rows), rows).double() for k in range(count)
        ]
        counts_for = ((torch.stack(without, dim=1) - some.unsqueeze(1)) / whole.unsqueeze(1)).abs() > 0.02
        at = at[:, counts_for.any(dim=0)] if bool(counts_for.any()) else at
        count = at.shape[1]
    same = len(at) > 1 and bool((at.sort(dim=1).values == at.sort(dim=1).values[:1]).all())
    share = count / places.count
    text = (
        f"{count} of {places.count} places ({percent(share)}) make {percent(alone)} of the score, gone without them: "
    )
    text += f"{named([_where(examined, int(one)) for one in at[0].sort().values])}{', the same in every sample' * same}"
    return (
        "serious" if share <= 0.02 else "worth knowing",
        text,
        "a shortcut: a mark, a pixel, a leaking column; the rest of the input does not count",
        "look at that place in the data: lens.saliency(x).plot(); does it know the label?",
    )


def _where(examined: Examined, place: int) -> str:
    """Name a place by its input, where there are several, and its position."""
    for name, labels in examined.places.labels.items():
        found = (labels == place).nonzero()
        if not len(found):
            continue
        leaf = examined.scorer.leaves[name].value
        names = examined.inputs.features.get(name)
        if names and leaf.ndim == 2:
            return str(names[int(found[0, 1])])
        moving = [axis for axis in range(1, labels.ndim) if labels.shape[axis] > 1]
        position = ", ".join(str(int(found[0, axis])) for axis in moving)
        return f"{name} ({position})" if len(examined.places.labels) > 1 else f"({position})"
    return str(place)
