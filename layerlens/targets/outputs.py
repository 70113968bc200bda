"""What is read from a model's output: its main tensor, and one number per sample of it."""

from __future__ import annotations

from typing import Any

import torch

from layerlens.errors import TargetError
from layerlens.model.trees import describe, named_tensors

MAIN_OUTPUTS = ("logits", "last_hidden_state", "prediction_logits", "reconstruction", "sample")


def main_output(output: Any) -> torch.Tensor:
    """The tensor of a nested output that scores are read from.

    A field named as in `MAIN_OUTPUTS` comes first, then the first floating-point tensor.

    Raises:
        TargetError: when there is none.
    """
    if isinstance(output, torch.Tensor):
        return output
    tensors = dict(named_tensors(output))
    for name in MAIN_OUTPUTS:
        if name in tensors:
            return tensors[name]
    for tensor in tensors.values():
        if tensor.is_floating_point():
            return tensor
    raise TargetError(f"the model returned {describe(output)}, which holds no floating-point tensor to score.")


def class_scores(output: Any) -> torch.Tensor:
    """The main output as (batch, classes); TargetError when it has other axes."""
    scores = main_output(output)
    if scores.ndim == 1:
        scores = scores.unsqueeze(1)
    if scores.ndim != 2:
        raise TargetError(
            f"the output has shape {tuple(scores.shape)}, so a class alone does not name one score per sample. Give a "
            "tuple that indexes the axes after the batch, such as (position, class) = (-1, 5), or a function of the "
            "output that returns shape (batch,), such as lambda out: out.mean(dim=(1, 2, 3))."
        )
    return scores


def by_class(output: Any, rows: torch.Tensor, classes: int | torch.Tensor) -> torch.Tensor:
    """The score of a class, or of one class per sample of the caller's batch; TargetError when out of range."""
    logits = class_scores(output)
    if isinstance(classes, int):
        chosen = torch.full((len(logits),), classes, device=logits.device)
    else:
        if int(rows.max()) >= len(classes):
            raise TargetError(f"the target holds {len(classes)} class(es) for a batch of {int(rows.max()) + 1}.")
        chosen = classes.to(logits.device)[rows.to(logits.device)]
    count = logits.shape[1]
    if bool(((chosen < -count) | (chosen >= count)).any()):
        bad = int(chosen[(chosen < -count) | (chosen >= count)][0])
        raise TargetError(f"class {bad} is out of range: the output has {count} classes (0 to {count - 1}).")
    return logits.gather(1, (chosen % count).unsqueeze(1)).squeeze(1)


def by_place(output: Any, place: tuple[Any, ...]) -> torch.Tensor:
    """The entry of the main output at an index into the axes after the batch; TargetError when out of range."""
    scores = main_output(output)
    if len(place) != scores.ndim - 1:
        raise TargetError(
            f"target {place} has {len(place)} entries; the output {tuple(scores.shape)} needs {scores.ndim - 1}, "
            "one for each axis after the batch."
        )
    try:
        index = (slice(None),) + place  # noqa: RUF005 - a star inside an index needs Python 3.11 for type checkers
        return scores[index]
    except IndexError as error:
        raise TargetError(f"target {place} is out of range for an output of shape {tuple(scores.shape)}.") from error
