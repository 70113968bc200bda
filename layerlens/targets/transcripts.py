"""Targets of models that read a sequence with CTC: one symbol of what was read, or a whole transcript."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch.nn.functional import ctc_loss

from layerlens.errors import TargetError
from layerlens.signatures import public

from .names import Names, TokenNames, class_index, class_label, short_label
from .outputs import log_probabilities, main_output
from .target import Target
from .tokens import Vocabulary


@public
def symbol(place: int, name: int | str | None = None, *, blank: int = 0) -> Target:
    """Return the score of one symbol of what a CTC model reads, such as the third letter of a word.

    The output `(batch, step, class)` is read as CTC does it greedily: the best class at each step, repetitions merged,
    blanks left out. The score is the mean over the steps of the symbol, which are chosen on the original input and kept
    while it is changed.

    Args:
        place: which symbol, from 0; negative ones count from the end.
        name: the class that is scored at these steps, as index or name; None for the one that was read. So
            `contrast(symbol(2), symbol(2, "F"))` asks why the model read this letter there and not an F.
        blank: class of the blank.

    Raises:
        TargetError: when the output is of another form, or a sample has no such symbol (says what was read).

    Source: Graves et al. 2006, Connectionist temporal classification, section 3.2.

    Example:
        >>> out = torch.tensor([[[0.0, 5, 1], [0, 3, 1], [9, 0, 0], [0, 1, 4]]])  # reads 1 1 blank 2
        >>> symbol(0)(out), symbol(0, 2)(out), symbol(-1)(out)
        (tensor([4.]), tensor([1.]), tensor([4.]))
    """
    if isinstance(place, bool) or not hasattr(place, "__index__"):
        raise TargetError(f"symbol({place!r}): give the number of a symbol from 0, symbol(2); -1 is the last.")
    return _symbol(int(place), name, blank, None)


def _symbol(place: int, name: int | str | None, blank: int, names: Names) -> Target:
    def choose(output: object) -> Target:
        wanted = None if name is None else class_index(name, names) if isinstance(name, str) else int(name)
        chosen: list[tuple[list[int], int]] = []
        labels = []
        for row in _steps(output).detach().argmax(dim=2).tolist():
            read = [list(steps) for index, steps in itertools.groupby(range(len(row)), row.__getitem__)]
            read = [steps for steps in read if row[steps[0]] != blank]
            texts = [_text(row[steps[0]], names) for steps in read]
            if not -len(read) <= place < len(read):
                shown = ", ".join(texts[:20]) or "nothing but blanks"
                raise TargetError(
                    f"symbol({place}): sample {len(chosen)} has {len(read)} symbol(s): {shown}. "
                    f"The class of the blank is {blank}; blank= names another."
                )
            own = row[read[place][0]] if wanted is None else wanted
            chosen.append((read[place], own))
            labels.append(f"{_text(own, names)} as symbol {place % len(read)} of {' '.join(texts)}")

        def score(output: object, rows: torch.Tensor) -> torch.Tensor:
            scores = _steps(output, rows)
            own = [chosen[row] for row in rows.tolist()]
            for steps, index in own:
                if steps[-1] >= scores.shape[1] or not -scores.shape[2] <= index < scores.shape[2]:
                    raise TargetError(f"class {index} at step {steps[-1]} is not in the output {tuple(scores.shape)}.")
            return torch.stack([scores[k, steps, index].mean() for k, (steps, index) in enumerate(own)])

        return Target(score, short_label(labels, "symbols"), each=tuple(labels))

    def unchosen(output: object, rows: torch.Tensor) -> torch.Tensor:
        return choose(output)(output, torch.arange(len(rows)))

    label = f"symbol {place}" if name is None else f"{name} as symbol {place}"
    reader = None if names is not None else lambda names: _symbol(place, name, blank, names)
    return Target(unchosen, label, choose, reader)


@public
def transcript(symbols: str | Sequence[int | str], *, blank: int = 0) -> Target:
    """Return the log-probability of a transcript under CTC, by all its alignments, in nats.

    log p(l | x) = log of the sum over all paths that read as l of the product of p(class at step t); Graves et al.
    2006, eq. 3. `contrast(transcript("HOUSE"), transcript("MOUSE"))`, their difference, asks why this and not that.

    Args:
        symbols: a text, whose characters are names of classes, or which a tokenizer reads; or a list of classes.
        blank: class of the blank.

    Raises:
        TargetError: when the output is of another form, or has too few steps for the transcript.

    Example:
        >>> out = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])  # blank or 1, twice: 3 of 4 paths read 1
        >>> transcript([1])(out).exp()
        tensor([0.7500])
    """
    return _transcript(symbols, blank, None)


def _transcript(symbols: str | Sequence[int | str], blank: int, names: Names) -> Target:
    label = f"log p({symbols!r})"

    def score(output: object, rows: torch.Tensor) -> torch.Tensor:
        if isinstance(symbols, str) and isinstance(names, Vocabulary):
            classes = names.read(symbols)
        else:
            classes = [class_index(one, names) if isinstance(one, str) else int(one) for one in symbols]
        logs = log_probabilities(_steps(output, rows))  # (batch, step, class)
        batch, steps, count = logs.shape
        if bad := [one for one in classes if not 0 <= one < count or one == blank]:
            raise TargetError(
                f"{label} holds class {bad[0]}; the output has classes 0 to {count - 1}, and {blank} is the blank."
            )
        if steps < len(classes) + sum(a == b for a, b in itertools.pairwise(classes)):
            raise TargetError(f"{label} does not fit into the {steps} steps of the output {tuple(logs.shape)}.")
        goals = torch.tensor(classes, device=logs.device).expand(batch, -1)
        lengths = [torch.full((batch,), number) for number in (steps, len(classes))]
        return -ctc_loss(logs.transpose(0, 1), goals, lengths[0], lengths[1], blank=blank, reduction="none")

    reader = None if names is not None else lambda names: _transcript(symbols, blank, names)
    return Target(score, label, reader=reader)


def _steps(output: object, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Return the main output if it has a score of each class at each step of each sample.

    Raises:
        TargetError: if it does not.
    """
    scores = main_output(output)
    if scores.ndim != 3 or (rows is not None and len(scores) != len(rows)):
        raise TargetError(
            f"a CTC target needs scores of each class at each step, (batch, step, class); got {tuple(scores.shape)}. "
            "For an output (step, batch, class): Lens(model, forward=lambda model, x: model(x).transpose(0, 1))."
        )
    return scores


def _text(index: int, names: Names) -> str:
    return names[index] if isinstance(names, TokenNames) else class_label(index, names)
