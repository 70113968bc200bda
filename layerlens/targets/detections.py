"""Targets of detection models: the score of one detection, or the mask of one instance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from layerlens.errors import TargetError
from layerlens.model.trees import describe, entries
from layerlens.signatures import public

from .names import Names, class_label, short_label
from .target import Target

Found: TypeAlias = Mapping[str, torch.Tensor]
"""The detections in one picture: `boxes` (n, 4), `scores` (n,), and where the model has them `labels` (n,), `masks`."""
Read: TypeAlias = Callable[[Any], Sequence[Found]]

SAME = 1 - 1e-6
"""Overlap from which a box is the one that was chosen."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The detection of one picture that is explained.

    Attributes:
        box: left, top, right, bottom, `(4,)`.
        label: its class; None where the model has none.
        inside: where its mask is above one half, `(height, width)`; None for the score.
    """

    box: torch.Tensor
    label: int | None
    inside: torch.Tensor | None


@public
def box(index: int = 0, *, read: Read | None = None) -> Target:
    """Return the score of one detection, to ask why the model sees this object here.

    The detection is chosen on the original input. When a method changes the input, detections move, vanish and change
    their order; then the one of the same class is scored for which the overlap with the chosen box (intersection over
    union) times the score is largest, and the value is that product, 0 if there is none.

    Args:
        index: which detection of each picture, in the order of the model's output: 0 is the surest one in torchvision.
        read: output -> one mapping per picture with `boxes` (n, 4) as left, top, right, bottom, `scores` (n,), and
            optionally `labels` (n,); None for a model that returns such a list, as torchvision's do.

    Raises:
        TargetError: when the output is of another form, or a picture has no such detection.

    Source: Petsiuk et al. 2021, D-RISE, eq. 3, for the similarity of detections.

    Example:
        >>> found = [{"boxes": torch.tensor([[0.0, 0, 4, 4], [5, 5, 8, 8]]), "scores": torch.tensor([0.9, 0.4])}]
        >>> box(1)(found, torch.tensor([0]))
        tensor([0.4000])
    """
    return _of_detection(index, read, masked=False)


@public
def instance(index: int = 0, *, read: Read | None = None) -> Target:
    """Return the mask of one detected instance: its mean probability over the instance's own area.

    The instance, and the area where its mask is above one half, are chosen on the original input; see `box` for which
    one is scored when a method changes the input.

    Args:
        index: which detection of each picture, in the order of the model's output.
        read: output -> one mapping per picture as for `box`, with `masks` (n, height, width) or (n, 1, height, width)
            as well; None for a model that returns such a list, as torchvision's Mask R-CNN does.

    Raises:
        TargetError: when the output is of another form, a picture has no such instance, or its mask is empty.

    Example:
        >>> mask = torch.tensor([[[0.9, 0.7], [0.1, 0.0]]])
        >>> box_, score = torch.tensor([[0.0, 0, 2, 1]]), torch.tensor([0.8])
        >>> instance()([{"boxes": box_, "scores": score, "masks": mask}], torch.tensor([0]))
        tensor([0.8000])
    """
    return _of_detection(index, read, masked=True)


def _of_detection(index: int, read: Read | None, *, masked: bool, names: Names = None) -> Target:
    what = "instance" if masked else "box"
    if isinstance(index, bool) or not hasattr(index, "__index__"):
        raise TargetError(
            f"{what}({index!r}): give the number of a detection, {what}(0); for other ones in other pictures a list of "
            f"targets, [{what}(0), {what}(2)]."
        )

    def choose(output: object) -> Target:
        found = _read(output, read, masked)
        chosen = [_chosen(one, index, masked) for one in found]
        labels = [_label(what, index, one, kept, names) for one, kept in zip(found, chosen, strict=True)]

        def scores(changed: object, rows: torch.Tensor) -> torch.Tensor:
            now = _read(changed, read, masked)
            if len(now) != len(rows):
                raise TargetError(f"the model returned detections of {len(now)} picture(s) for {len(rows)}.")
            values = []
            for one, row in zip(now, rows.tolist(), strict=True):
                kept = chosen[row]
                if isinstance(kept, str):
                    raise TargetError(f"picture {row} {kept}")
                values.append(_score(one, kept))
            return torch.stack(values)

        return Target(scores, short_label(labels, "detections"), each=tuple(labels), by_entry=read is None)

    return Target(
        lambda output, rows: choose(output)(output, torch.arange(len(rows))),
        f"{what} {index}",
        choose,
        by_entry=read is None,
        reader=lambda known: _of_detection(index, read, masked=masked, names=known),
    )


def _label(what: str, index: int, found: Found, chosen: Chosen | str, names: Names) -> str:
    if isinstance(chosen, str):
        return f"{what} {index}: none"
    kind = "" if chosen.label is None else f"{class_label(chosen.label, names)}, "
    return f"{what} {index}: {kind}score {float(found['scores'][index].detach()):.2f}"


def _read(output: object, read: Read | None, masked: bool) -> Sequence[Found]:
    """The detections of each picture.

    Raises:
        TargetError: when they are not there.
    """
    found = output if read is None else read(output)
    names = ("boxes", "scores", *["masks"] * masked)
    listed = entries(found)
    if listed is None or not all(name in one for one in listed for name in names):
        raise TargetError(
            f"a detection is read from a list with a mapping of {', '.join(names)} per picture, and "
            f"{'the model' if read is None else 'read='} returned {describe(found)}. Give read=, output -> such a list"
            + (", for example lambda output: processor.post_process_object_detection(output, 0.0)." * (read is None))
        )
    return listed


def _chosen(found: Found, index: int, masked: bool) -> Chosen | str:
    """The detection at an index, or why there is none."""
    count = len(found["scores"])
    if not count:
        return "has no detection. Lower the score from which the model returns one."
    if not -count <= index < count:
        return f"has {count} detection(s), so there is no number {index}: give 0 to {count - 1}."
    label = int(found["labels"][index]) if "labels" in found else None
    inside = _plane(found["masks"], index).detach() > 0.5 if masked else None
    if inside is not None and not bool(inside.any()):
        return f"has no area for detection {index}: its mask is nowhere above one half."
    return Chosen(found["boxes"][index].detach(), label, inside)


def _plane(masks: torch.Tensor, index: int) -> torch.Tensor:
    mask = masks[index]
    return mask[0] if mask.ndim == 3 else mask


def _score(found: Found, chosen: Chosen) -> torch.Tensor:
    """Return the score, or the mask, of the detection that is most like the chosen one; 0 if there is none.

    Raises:
        TargetError: when a mask has another size than the chosen one.
    """
    boxes, scores = found["boxes"], found["scores"]
    overlap = _overlap(boxes.detach().double(), chosen.box.double())
    if chosen.label is not None and "labels" in found:
        overlap = overlap * (found["labels"] == chosen.label)
    if not len(scores) or float(overlap.max()) == 0:
        held = found["masks"] if chosen.inside is not None else scores
        return held.sum() * 0  # with a graph, where there is one
    alike = overlap * scores.detach().double() + 2 * (overlap >= SAME)
    index = int(alike.argmax())
    value = scores[index]
    if chosen.inside is not None:
        plane = _plane(found["masks"], index)
        if plane.shape != chosen.inside.shape:
            raise TargetError(f"a mask has shape {tuple(plane.shape)} now, and {tuple(chosen.inside.shape)} before.")
        value = plane[chosen.inside].mean()
    return value * overlap[index].to(value) if float(overlap[index]) < SAME else value


def _overlap(boxes: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes `(n, 4)` with one; 1 for the same box, also an empty one."""
    low, high = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    both = (high - low).clamp(min=0).prod(dim=1)
    areas, area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1), (box[2:] - box[:2]).clamp(min=0).prod()
    union = areas + area - both
    same = (boxes == box).all(dim=1)
    return torch.where(same, 1.0, torch.where(union > 0, both / union, 0.0))
