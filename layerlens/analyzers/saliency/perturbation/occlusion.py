"""Occlusion: what the score loses under a window that slides over the input."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.coalitions import Coalitions
from layerlens.analyzers.common.leaves.leaves import Leaf, by_leaf, place_axes
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import scoring, warn_of_zeros
from layerlens.errors import OptionError, check_count
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

Size: TypeAlias = int | Sequence[int] | None
Sizes: TypeAlias = Size | Mapping[str, Size]


@method(
    family="perturbation",
    passes="1 forward pass a window (225 on an image)",
    needs="a baseline",
    source="Zeiler & Fergus 2014",
)
def occlusion(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    window: Sizes = None,
    stride: Sizes = None,
    baseline: Baseline = "zero",
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Measure what the score loses when a window of the input is covered, mean over the windows that cover a place.

    S(x) - S(x with the window replaced by the baseline) (Zeiler & Fergus 2014, sec. 4.2). All channels or features of
    a place are covered together, unless the window has a size along them. Windows start every `stride` places; the last
    ones end with the input, so that sizes that do not divide are covered whole.

    Args:
        x: ... Several inputs are covered in turn.
        window: size of the window in places: one number, one for each axis of places, or one for each axis of a sample;
            or a dict of those by input name. None for an eighth of each side of an image, a volume or a series, one
            token, one column of a table.
        stride: distance of the windows in places, in the same forms; None for half a window.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        >>> occlusion(net, torch.ones(1, 1, 2, 2), target=0, window=1, stride=1).tensor
        tensor([[[[1., 2.],
                  [3., 4.]]]])
    """
    with scoring(model, x, target, where=where, forward=forward, grad=False) as scorer:
        coalitions = Coalitions(scorer, baseline, batch_size)
        values, used = {}, {}
        windows, strides = (
            by_leaf(scorer.inputs, scorer.leaves, what, given)
            for what, given in (("window", window), ("stride", stride))
        )
        for name, leaf in scorer.leaves.items():
            axes, sizes, steps = _windows(name, leaf, windows[name], strides[name])
            used[name] = (sizes, steps)
            values[name] = _slide(coalitions, name, leaf, axes, sizes, steps)
        warn_of_zeros(values, "occlusion")
        only = next(iter(used.values())) if len(used) == 1 else None
        return scorer.attribution(
            values,
            method="occlusion",
            settings={
                "window": only[0] if only else {name: pair[0] for name, pair in used.items()},
                "stride": only[1] if only else {name: pair[1] for name, pair in used.items()},
                "baseline": coalitions.label,
                "batch_size": coalitions.batch_size,
            },
            score=coalitions.score,
        )


def _windows(name: str, leaf: Leaf, window: Size, stride: Size) -> tuple[list[int], tuple[int, ...], tuple[int, ...]]:
    """The axes of a sample along which a window slides, and its size and stride along them.

    Raises:
        OptionError: when the window does not fit.
    """
    axes, every = place_axes(leaf), list(range(leaf.value.ndim - 1))
    if leaf.layer is None and any(isinstance(one, Sequence) and len(one) == len(every) for one in (window, stride)):
        axes = every
    places = [leaf.value.shape[1 + axis] for axis in axes]
    single = leaf.layer is not None or leaf.value.ndim <= 2
    default = [1 if single else max(1, round(size / 8)) for size in places]
    sizes = _sizes_by_axis(name, "window", window, default, axes)
    steps = _sizes_by_axis(name, "stride", stride, [max(1, size // 2) for size in sizes], axes)
    for size, step, place in zip(sizes, steps, places, strict=True):
        if size > place or step > size:
            raise OptionError(
                f"a window of {sizes} with stride {steps} does not fit the places {tuple(places)} of input {name!r}: a "
                "window is at most as long as its side, a stride as its window."
            )
    return axes, sizes, steps


def _sizes_by_axis(name: str, what: str, given: Size, default: list[int], axes: list[int]) -> tuple[int, ...]:
    if given is None:
        return tuple(default)
    sizes = [given] * len(axes) if isinstance(given, int) else list(given)
    if len(sizes) != len(axes):
        raise OptionError(f"{what}={given!r} has {len(sizes)} numbers; input {name!r} has {len(axes)} axes of places.")
    for size in sizes:
        check_count(what, size)
    return tuple(sizes)


def _slide(
    coalitions: Coalitions, name: str, leaf: Leaf, axes: list[int], sizes: tuple[int, ...], steps: tuple[int, ...]
) -> torch.Tensor:
    places = [leaf.value.shape[1 + axis] for axis in axes]
    starts = [
        sorted({*range(0, place - size, step), place - size})
        for place, size, step in zip(places, sizes, steps, strict=True)
    ]
    corners = list(itertools.product(*starts))
    shape = [size if axis in axes else 1 for axis, size in enumerate(leaf.value.shape[1:])]
    total = torch.zeros(coalitions.batch, *shape, dtype=torch.float64)
    cover = torch.zeros(1, *shape, dtype=torch.float64)
    others = {other: torch.ones(1, *[1] * (one.value.ndim - 1)) for other, one in coalitions.scorer.leaves.items()}

    def box(corner: tuple[int, ...]) -> tuple[slice, ...]:
        index = [slice(None)] * len(shape)
        for axis, start, size in zip(axes, corner, sizes, strict=True):
            index[axis] = slice(start, start + size)
        return tuple(index)

    def masks(chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        mask = torch.ones(len(chosen), *shape)
        for row, place in enumerate(chosen.tolist()):
            mask[row][box(corners[place])] = 0
        return {other: ones.expand(len(chosen), *ones.shape[1:]) for other, ones in others.items()} | {name: mask}

    for chosen, scores in coalitions.every(len(corners), masks, f"occlusion of {name}"):
        drops = (coalitions.score - scores).double().cpu()  # (m, batch)
        for place, drop in zip(chosen.tolist(), drops, strict=True):
            where = (slice(None), *box(corners[place]))
            total[where] += drop.reshape(-1, *[1] * len(shape))
            cover[where] += 1
    values = (total / cover).to(coalitions.score).expand(leaf.value.shape)
    return values / leaf.value.shape[-1] if leaf.layer is not None else values.clone()
