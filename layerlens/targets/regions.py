"""Targets of segmentation models: the score of a class over an area."""

from __future__ import annotations

import torch

from layerlens.errors import TargetError, choose
from layerlens.model.trees import describe
from layerlens.signatures import public

from .outputs import main_output
from .target import Target


@public
def area(label: int, where: torch.Tensor | tuple[int, int, int, int] | None = None, *, over: str = "mean") -> Target:
    """Return the score of a class over an area of the output of a segmentation model, `(batch, class, height, width)`.

    Args:
        label: index of the class (channel).
        where: a boolean mask `(height, width)` or `(batch, height, width)` of the output's size; a box
            `(top, left, bottom, right)` in places of the output, without the last two; None for the places where the
            class has the highest score on the original input, which are kept while the input is changed.
        over: `"mean"` or `"sum"` over the places.

    Raises:
        TargetError: when the output has no such class or size, or the area is empty.

    Example:
        >>> out = torch.arange(8.0).reshape(1, 2, 2, 2)
        >>> area(1, (0, 0, 1, 2))(out)
        tensor([4.5000])
    """
    choose("reading over places", over, ("mean", "sum"))

    def read(output: object, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = _scores(output, label)
        weights = mask[rows.to(mask.device)] if mask.ndim == 3 else mask.expand(len(rows), -1, -1)
        if weights.shape[1:] != scores.shape[2:]:
            raise TargetError(f"a mask {tuple(mask.shape)} does not fit the output {tuple(scores.shape)}.")
        weights = weights.to(scores)
        total = (scores[:, label] * weights).sum(dim=(1, 2))
        return total if over == "sum" else total / weights.sum(dim=(1, 2))

    name = f"{over} of class {label} over " + ("its own area" if where is None else "an area")
    if where is None:

        def own(output: object) -> torch.Tensor:
            scores = _scores(output, label).detach()
            return _not_empty(scores.argmax(dim=1) == label % scores.shape[1], f"class {label} is highest nowhere")

        def choose_area(output: object) -> Target:
            mask = own(output)
            return Target(lambda other, rows: read(other, rows, mask), name)

        return Target(lambda output, rows: read(output, torch.arange(len(rows)), own(output)), name, choose_area)
    if isinstance(where, torch.Tensor):
        if where.dtype != torch.bool or where.ndim not in (2, 3):
            raise TargetError(
                f"an area is a boolean mask (height, width) or (batch, height, width), got {describe(where)}."
            )
        fixed = _not_empty(where, "the mask is empty")
        return Target(lambda output, rows: read(output, rows, fixed), name)
    top, left, bottom, right = where

    def in_box(output: object, rows: torch.Tensor) -> torch.Tensor:
        height, width = _scores(output, label).shape[2:]
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise TargetError(f"the box {where} holds no place of an output of {height} x {width}.")
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        return read(output, rows, mask)

    return Target(in_box, name)


def _scores(output: object, label: int) -> torch.Tensor:
    scores = main_output(output)
    if scores.ndim != 4 or not -scores.shape[1] <= label < scores.shape[1]:
        raise TargetError(
            f"class {label} over an area needs an output (batch, class, height, width) with that class; got "
            f"{tuple(scores.shape)}."
        )
    return scores


def _not_empty(mask: torch.Tensor, why: str) -> torch.Tensor:
    empty = ~mask.reshape(-1, mask.shape[-2] * mask.shape[-1]).any(dim=1)
    if bool(empty.any()):
        raise TargetError(f"{why} in sample(s) {empty.nonzero().flatten().tolist()[:8]}: there is nothing to score.")
    return mask
