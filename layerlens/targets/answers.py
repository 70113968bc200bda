"""Which input the places of an output follow: the text itself, or the answer that a decoder reads."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from layerlens.errors import TargetError
from layerlens.inputs.inputs import Inputs
from layerlens.inputs.sequences import InputSequence, joined, resized, sequences, tokens_first

from .outputs import main_output

Run = Callable[[Inputs], Any]
"""Runs a borrowed model on inputs and returns its output."""

NAME_IT = "Name the place: target=(place, token), such as (-1, ' house'), for one sample or texts of one length."


class Answers:
    """The places of an output `(batch, place, ...)`, by the input that they follow.

    It has as many places as the output. Where several inputs have, each is made one place shorter in turn (longer, if
    it has one place): the output follows the one that makes it shorter as well.

    Args:
        inputs: inputs of the model.
        run: runs the borrowed model; None if there is no model to try.
        padding: id of the padding token, where it is known.
    """

    def __init__(self, inputs: Inputs, run: Run | None = None, padding: int | None = None) -> None:
        self._sequences, self._padding = sequences(inputs), padding
        self._followed: list[InputSequence] = []
        by_count = sorted(self._sequences, key=lambda one: one.count)
        for _, group in itertools.groupby(by_count, key=lambda one: one.count):
            several = list(group)
            if run is not None and len(several) > 1:
                self._followed += _followed(inputs.rows(torch.arange(1)), run, several)

    def sequence(self, count: int) -> InputSequence | None:
        """Return the input that an output of `count` places follows; None if no input has so many.

        Raises:
            TargetError: when several have, and it is unknown which of them it is.
        """
        known = [one for one in self._followed if one.count == count]
        followed = known or [one for one in self._sequences if one.count == count]
        if len(followed) > 1:
            raise TargetError(
                f"the output has {count} places, and so have {' and '.join(map(str, followed))}: which of them it "
                f"follows is unknown. {NAME_IT}"
            )
        return followed[0] if followed else None

    def used(self, count: int) -> torch.Tensor | None:
        """Return which of `count` places hold a token and no padding, `(batch, place)`; None if all do.

        Raises:
            TargetError: when it is unknown.
        """
        one = self.sequence(count)
        if one is None:
            padded = [str(one) for one in self._sequences if one.last() is not None or one.unsure]
            if padded:
                raise TargetError(
                    f"the output has {count} places, as no input has, and {' and '.join(padded)} ends with padding: "
                    f"which place is the last of each sample is unknown. {NAME_IT}"
                )
            return None
        if one.unsure:
            raise TargetError(
                f"the mask {' and '.join(one.unsure)} may be of {one} or of another input. Give it a name that begins "
                f"like that of its input, such as 'decoder_attention_mask' for 'decoder_input_ids'. {NAME_IT}"
            )
        if one.used is None and one.ids is not None and self._padding is not None:
            ends = one.ids[:, -1] == self._padding
            if bool(ends.any()) and not bool(ends.all()):
                raise TargetError(
                    f"some samples of {one} end with the padding token {self._padding}, and no input says whether it "
                    "is padding. Give its mask, such as 'attention_mask' for 'input_ids' or 'decoder_attention_mask' "
                    f"for 'decoder_input_ids'. {NAME_IT}"
                )
        return None if one.used is None or bool(one.used.all()) else one.used

    def place(self, index: int | torch.Tensor, rows: torch.Tensor, count: int) -> int | torch.Tensor:
        """Return the place among `count` of a token that is counted within its text, without padding.

        Args:
            index: the token, one for all or `(n,)`; negative ones count from the end of the text.
            rows: sample that each row of the output belongs to, `(n,)`.
            count: number of places of the output.

        Raises:
            TargetError: when a text has no such token, or its padding is unknown.
        """
        used = self.used(count)
        if used is None:
            return index
        order, counts = tokens_first(used[rows.to(used.device)])
        wanted = torch.as_tensor(index, device=counts.device).expand(len(counts))
        wanted = torch.where(wanted < 0, wanted + counts, wanted)
        bad = ((wanted < 0) | (wanted >= counts)).nonzero().flatten().tolist()
        if bad:
            given = index if isinstance(index, int) else int(index[bad[0]])
            raise TargetError(
                f"there is no token {given} in sample {int(rows[bad[0]])}, whose text has {int(counts[bad[0]])} tokens "
                "(padding is not counted); give a target for each sample: [(place, id), ...]."
            )
        return order.gather(1, wanted.unsqueeze(1)).squeeze(1)

    def padded(self, count: int) -> bool:
        """Whether an input that an output of `count` places may follow has padding."""
        fitting = [one for one in self._sequences if one.count == count]
        return any(one.unsure or (one.used is not None and not bool(one.used.all())) for one in fitting)


def _followed(inputs: Inputs, run: Run, several: Sequence[InputSequence]) -> list[InputSequence]:
    """The sequences that the output follows: it is one place shorter where they are."""
    whole, found = _places(inputs, run), []
    for one in several:
        other, more = resized(inputs, one)
        found += [one] * (_places(other, run) == whole + more)
    if found or not whole:
        return found
    for one in several:  # one that is not needed, such as labels, must not be longer than the others
        less = Inputs(inputs.args, {name: value for name, value in inputs.kwargs.items() if name not in one.names})
        if len(less.kwargs) < len(inputs.kwargs) and _places(less, run) == whole:
            return _followed(less, run, [other for other in several if other is not one])
    both = joined(several)  # such as ids with a number for each of them
    other, more = resized(inputs, both)
    return [both] if _places(other, run) == whole + more else []


def _places(inputs: Inputs, run: Run) -> int:
    """The number of places of the output; 0 if the model does not run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = main_output(run(inputs))
    except Exception:  # whatever the model raises for an input that it does not take
        return 0
    return output.shape[1] if output.ndim > 1 else 0
