"""How a change of the input affects the output: the loss, and whether the answer holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch

from layerlens.errors import InputError, OptionError, TargetError
from layerlens.model.trees import describe
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Spec, Target, as_target

Loss = Literal["cross_entropy", "margin"]
LOSSES = ("cross_entropy", "margin")

Labels = int | Sequence[int] | torch.Tensor
"""Class indices, one per sample; a single number for all samples."""


@dataclasses.dataclass(frozen=True)
class AnswerReader:
    """Reads outputs, row by row.

    Attributes:
        labels: the correct class of each sample, `(batch,)`; None with a target.
        target: the score to lower; None with labels.
        loss: the loss to raise, with labels.
        given: whether the labels are the user's rather than the model's own answers.
        probabilities: whether the output is a distribution rather than logits.
        targeted: whether the labels are classes to reach, or the target is a score to raise.
    """

    labels: torch.Tensor | None
    target: Target | None
    loss: str
    given: bool
    probabilities: bool = False
    targeted: bool = False

    @property
    def quantity(self) -> str:
        """Name of the mean over what holds."""
        if self.target is not None:
            return "score"
        if self.targeted:
            return "answers that resist"
        return "accuracy" if self.given else "decisions that hold"

    @property
    def goal(self) -> str:
        """What an attack on the classes is for."""
        return "the given class" if self.targeted else f"another class than the {'label' if self.given else 'answer'}"

    @property
    def text(self) -> str:
        """The quantity as part of a sentence."""
        texts = {"score": "mean score", "accuracy": "accuracy", "answers that resist": "share not of the class"}
        return texts.get(self.quantity, "share of the model's own decisions")

    @property
    def units(self) -> str:
        """Units of the quantity."""
        return "score" if self.target is not None else "share of samples"

    def __call__(self, output: object, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, and 1 where the answer holds and 0 elsewhere, or the score with a target.

        With `targeted`, the loss of the class to reach with its sign changed, and 1 where it is not reached.

        Returns:
            Two float64 tensors `(rows,)`.
        """
        if self.target is not None:
            score = self.target(output, rows).double()
            return score if self.targeted else -score, score.detach().cpu()
        assert self.labels is not None
        scores = _class_scores(output, len(rows)).double()
        correct = self.labels[rows].to(scores.device).unsqueeze(1)
        correct_score = scores.gather(1, correct).squeeze(1)
        held = scores.argmax(dim=1) == correct.squeeze(1)
        if self.loss == "margin":
            loss = scores.scatter(1, correct, float("-inf")).amax(dim=1) - correct_score
        elif self.probabilities:
            loss = -correct_score.clamp_min(1e-300).log()
        else:
            loss = torch.logsumexp(scores, dim=1) - correct_score
        return (-loss, (~held).double().cpu()) if self.targeted else (loss, held.double().cpu())

    def changed(self, held: torch.Tensor, threshold: float | None) -> torch.Tensor:
        """Return where the answer changed, bool; of a score, where it is below the threshold (above, if targeted)."""
        if self.target is None:
            return held == 0
        if threshold is None:
            return torch.zeros_like(held, dtype=torch.bool)
        return held > threshold if self.targeted else held < threshold

    def answers(self, output: object, rows: torch.Tensor) -> torch.Tensor:
        """Return the class of the largest output of each row; 0 with a target."""
        if self.target is not None:
            return torch.zeros(len(rows), dtype=torch.int64)
        return _class_scores(output, len(rows)).argmax(dim=1).cpu()


def answer_reader(
    output: object, labels: Labels | None, target: Spec, loss: str, batch: int, *, targeted: bool = False
) -> AnswerReader:
    """Choose what to read, from the clean output.

    Raises:
        InputError: when the labels do not fit.
        OptionError: when labels, or a loss of classes, and a target are given.
        TargetError: when the output is not `(batch, classes)` and there is no target.
    """
    if target is not None:
        if labels is not None:
            raise OptionError("give labels for accuracy, or a target for a score, not both.")
        if loss != LOSSES[0]:
            raise OptionError(f"loss={loss!r} is about classes, and target= is a score to change: leave loss= out.")
        resolved = as_target(target).resolve(output)
        resolved.check(batch)
        return AnswerReader(None, resolved, loss, True, targeted=targeted)
    scores = _class_scores(output, batch)
    with torch.no_grad():
        distribution = bool((scores >= 0).all()) and bool(((scores.double().sum(dim=1) - 1).abs() < 1e-3).all())
    if labels is None and targeted:
        raise OptionError("targeted=True needs labels=, the class that each sample is to reach, or target=, a score.")
    if labels is None:
        return AnswerReader(scores.detach().argmax(dim=1).cpu(), None, loss, False, distribution)
    return AnswerReader(as_labels(labels, batch, scores.shape[1]), None, loss, True, distribution, targeted)


def as_labels(labels: Labels, batch: int, classes: int) -> torch.Tensor:
    """Read the correct class of each sample, `(batch,)`.

    Raises:
        InputError: when they are not one class index per sample, or out of range.
    """
    try:
        indices = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"labels must be class indices, one per sample; got {describe(labels)}.") from error
    if indices.ndim == 0 and not (indices.is_floating_point() or indices.dtype == torch.bool):
        indices = indices.expand(batch)
    if indices.shape != (batch,) or indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise InputError(
            f"labels must hold one class index per sample, {batch} whole numbers; got {describe(indices)}."
        )
    indices = indices.long()
    bad = (indices < 0) | (indices >= classes)
    if bool(bad.any()):
        raise InputError(
            f"label {int(indices[bad][0])} is out of range: the output has {classes} classes (0 to {classes - 1})."
        )
    return indices


def _class_scores(output: object, batch: int) -> torch.Tensor:
    """Return the scores of the classes, `(batch, classes)`.

    Raises:
        TargetError: when the output has another shape.
    """
    main = main_output(output)
    if main.ndim != 2 or main.shape[0] != batch or main.shape[1] < 2:
        raise TargetError(
            f"accuracy needs an output (batch, classes); this one is {tuple(main.shape)} for {batch} sample(s). Give "
            "target=, a score to lower, such as (-1, 5) or a function of the output, instead of labels; or "
            "forward=, which can return the logits of one position."
        )
    return main
