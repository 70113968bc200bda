"""Streams of layers read by what stands behind the last of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from layerlens.analyzers.common.calls.call_sites import MEMORY
from layerlens.errors import OptionError, TargetError
from layerlens.targets.target import main_output

from .block_stack import Stream

CLOSE = 1e-3
"""How much the last layer's answer may differ from the model's own, relative to its size."""


class HeadReader:
    """Reads streams by the model's own code, or by a head that was given.

    Args:
        stream: of the layers.
        head: from the stream to scores; None for the model's own code.

    Raises:
        OptionError: when the head returns no scores.
        TargetError: when the model does not.
    """

    def __init__(self, stream: Stream, head: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        self.stream, self.head = stream, head
        self.own = main_output(stream.output)
        self.copies, self.how = False, "the model's own head, all layers in one run"
        self.difference = 0.0
        last = stream.values[-1]
        if head is not None:
            self.own = head(last.movedim(stream.axis, 0))
            self.how = "the head given"
            if (
                not isinstance(self.own, torch.Tensor)
                or self.own.ndim not in (2, 3)
                or len(self.own) != stream.inputs.batch
            ):
                raise OptionError("head must return scores (batch, classes) or (batch, positions, classes).")
            model = main_output(stream.output)
            self.difference = _apart(self.own, model) if model.shape == self.own.shape else float("inf")
            return
        if self.own.ndim not in (2, 3) or not self.own.is_floating_point() or len(self.own) != stream.inputs.batch:
            raise TargetError(
                f"the output {tuple(self.own.shape)} is no (batch, classes) or (batch, positions, classes): give head=."
            )
        # whether what follows takes other batches than the input's is seen by trying: twice the last must be the answer
        try:
            twice = stream.read_on([last, last], copies=False)
            fits = len(twice) == 2 * len(self.own) and all(_apart(part, self.own) < CLOSE for part in twice.chunk(2))
        except Exception:  # whatever the model says to a batch that does not fit its input
            fits = False
        if not fits:
            self.copies, self.how = True, "the model's own head, a run for each layer"

    def rows(self) -> Iterator[torch.Tensor]:
        """The scores for each layer, `(batch, ...)`; those of the last are the model's own."""
        values = self.stream.values
        if self.head is not None:
            for value in values:
                yield self.head(value.movedim(self.stream.axis, 0))
            return
        size = max(1, MEMORY // max(1, self.own.numel() * 8))
        for start in range(0, len(values), size):
            part = values[start : start + size]
            scores = self.stream.read_on(part, self.copies).chunk(len(part))
            if start + size >= len(values):
                self.difference = _apart(scores[-1], self.own)
                scores = (*scores[:-1], self.own)
            yield from scores


def _apart(found: torch.Tensor, own: torch.Tensor) -> float:
    """The largest difference, relative to the largest score."""
    if found.shape != own.shape:
        return float("inf")
    return float((found.double() - own.double()).abs().max() / own.double().abs().max().clamp_min(1e-30))
