"""Regions of a sampled picture as scores: a mask, a box, the cells of a grid."""

from __future__ import annotations

from typing import cast

import torch

from layerlens.errors import OptionError, TargetError
from layerlens.model.trees import describe
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Spec, Target, as_target

Region = Spec | torch.Tensor | tuple[int, int, int, int]
"""What to score of a picture: a mask, a box, a function of the picture, or a target."""


def region(target: Region) -> Target:
    """Read what to score of a picture.

    Raises:
        TargetError: when it does not fit.
    """
    if target is None:
        return contrast(None)
    if isinstance(target, torch.Tensor) and target.dtype == torch.bool:
        if target.ndim not in (2, 3) or not bool(target.flatten(-2).any(-1).all()):
            raise TargetError(
                "a region is a boolean mask (height, width) or (batch, height, width), and not empty; got "
                f"{describe(target)}."
            )
        return contrast(target if target.ndim == 3 else target[None], "a region")
    if isinstance(target, tuple) and len(target) == 4:
        return _boxed(cast("tuple[int, int, int, int]", target))
    return as_target(target)


def _boxed(box: tuple[int, int, int, int]) -> Target:
    top, left, bottom, right = box

    def read(output: object, rows: torch.Tensor) -> torch.Tensor:
        height, width = _picture(output).shape[2:]
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise TargetError(f"the box {box} holds no place of a picture {height} x {width}.")
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        mask[:, top:bottom, left:right] = True
        return contrast(mask).function(output, rows)

    return Target(read, f"contrast of the box {box}")


def contrast(masks: torch.Tensor | None, name: str = "the picture") -> Target:
    """The contrast of a picture over a mask for each sample, or one for all; over all of it for None.

    (x - m)(x' - m), mean over places and channels, where m is the median of each channel, the background, and x' the
    picture held fixed: what draws a place in its own color counts for it, whatever the color.
    """

    def read(output: object, rows: torch.Tensor) -> torch.Tensor:
        picture = _picture(output)
        drawn = picture.detach() - picture.detach().flatten(2).median(2).values[..., None, None]
        contrast = (drawn - picture.detach() + picture) * drawn
        if masks is None:
            return contrast.flatten(1).mean(1)
        weights = masks[rows.to(masks.device)] if len(masks) > 1 else masks.expand(len(rows), *masks.shape[1:])
        if weights.shape[1:] != picture.shape[2:]:
            raise TargetError(f"a mask {tuple(masks.shape[1:])} does not fit the picture {tuple(picture.shape)}.")
        weights = weights.to(picture)[:, None]
        return (contrast * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3)) / picture.shape[1]

    return Target(read, f"contrast of {name}")


def _picture(output: object) -> torch.Tensor:
    picture = main_output(output)
    if picture.ndim != 4:
        raise TargetError(
            f"a region needs a picture (batch, channel, height, width); the loop returned {describe(picture)}. Give a "
            "function of it: target=lambda output: ..."
        )
    return picture


def grid_of(maps: int | tuple[int, int], picture: torch.Tensor) -> tuple[int, int]:
    """Read the cells of the maps.

    Raises:
        OptionError: when the picture has fewer places.
    """
    rows, columns = (maps, maps) if isinstance(maps, int) else maps
    height, width = _picture(picture).shape[2:]
    if not (0 < rows <= height and 0 < columns <= width):
        raise OptionError(f"maps={maps!r}: give the cells of a grid, at most {height} x {width} as the picture has.")
    return rows, columns


def cells_of(grid: tuple[int, int], picture: torch.Tensor) -> torch.Tensor:
    """Masks of the cells of a grid, `(cells, height, width)`, cells of about equal size."""
    height, width = picture.shape[2:]
    down, right = (
        torch.arange(size).mul(cells).div(size, rounding_mode="floor")
        for size, cells in ((height, grid[0]), (width, grid[1]))
    )
    number = down[:, None] * grid[1] + right
    return number == torch.arange(grid[0] * grid[1])[:, None, None]
