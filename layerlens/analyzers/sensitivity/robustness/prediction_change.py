"""What an attack or a corruption does to the output: the loss that it raises, and whether the answer holds."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch

from layerlens.errors import InputError, OptionError, TargetError
from layerlens.model.trees import describe
from layerlens.targets.target import Spec, Target, as_target, main_output

Loss = Literal["cross_entropy", "margin"]
LOSSES = ("cross_entropy", "margin")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Reads outputs, row by row.

    Attributes:
        labels: the class that is right for each sample, `(batch,)`; None with a target.
        target: the score that shall fall; None with labels.
        loss: which loss rises, with labels.
        given: whether the labels are the user's, and not the model's own answers.
        probabilities: whether the output is a distribution already and not logits.
    """

    labels: torch.Tensor | None
    target: Target | None
    loss: str
    given: bool
    probabilities: bool = False

    @property
    def quantity(self) -> str:
        """What a mean of what `__call__` holds is."""
        if self.target is not None:
            return "score"
        return "accuracy" if self.given else "decisions that hold"

    @property
    def words(self) -> str:
        """The same in a sentence."""
        return {"score": "mean score", "accuracy": "accuracy"}.get(self.quantity, "share of the model's own decisions")

    @property
    def units(self) -> str:
        """Of it."""
        return "score" if self.target is not None else "share of samples"

    def __call__(self, output: Any, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and 1 where the answer holds and 0 where not, or the score with a target; `(rows,)`, float64.

        Args:
            output: of the model.
            rows: which sample each row is.
        """
        if self.target is not None:
            score = self.target(output, rows.to(main_output(output).device)).double()
            return -score, score.detach().cpu()
        assert self.labels is not None
        scores = _classes(output, len(rows)).double()
        right = self.labels[rows].to(scores.device).unsqueeze(1)
        own = scores.gather(1, right).squeeze(1)
        held = scores.argmax(dim=1) == right.squeeze(1)
        if self.loss == "margin":
            loss = scores.scatter(1, right, float("-inf")).amax(dim=1) - own
        elif self.probabilities:
            loss = -own.clamp_min(1e-300).log()
        else:
            loss = torch.logsumexp(scores, dim=1) - own
        return loss, held.double().cpu()

    def answers(self, output: Any, rows: torch.Tensor) -> torch.Tensor:
        """The class that the output names for each row; 0 with a target."""
        if self.target is not None:
            return torch.zeros(len(rows), dtype=torch.int64)
        return _classes(output, len(rows)).argmax(dim=1).cpu()


def verdict(output: Any, labels: Any, target: Spec, loss: str, batch: int) -> Verdict:
    """Settle what is read, on the clean output.

    Args:
        output: of the model, as it is.
        labels: as users give them; None for what the model says itself.
        target: a score to watch in place of classes.
        loss: a member of `LOSSES`.
        batch: samples.

    Raises:
        InputError: when the labels do not fit.
        OptionError: when labels and a target are given.
        TargetError: when the output is not `(batch, classes)` and there is no target.
    """
    if target is not None:
        if labels is not None:
            raise OptionError("give labels, for accuracy, or a target, for a score, and not both.")
        resolved = as_target(target).resolve(output)
        resolved.check(batch)
        return Verdict(None, resolved, loss, True)
    scores = _classes(output, batch)
    with torch.no_grad():
        distribution = bool((scores >= 0).all()) and bool(((scores.double().sum(dim=1) - 1).abs() < 1e-3).all())
    if labels is None:
        return Verdict(scores.detach().argmax(dim=1).cpu(), None, loss, False, distribution)
    return Verdict(as_labels(labels, batch, scores.shape[1]), None, loss, True, distribution)


def as_labels(labels: Any, batch: int, classes: int) -> torch.Tensor:
    """The right class of each sample, `(batch,)`.

    Raises:
        InputError: when they are not one class index per sample, or out of range.
    """
    try:
        found = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"labels must be class indices, one per sample; got {describe(labels)}.") from error
    if found.ndim == 0 and not (found.is_floating_point() or found.dtype == torch.bool):
        found = found.expand(batch)
    if found.shape != (batch,) or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise InputError(f"labels must hold one class index per sample, {batch} whole numbers; got {describe(found)}.")
    found = found.long()
    bad = (found < 0) | (found >= classes)
    if bool(bad.any()):
        raise InputError(
            f"label {int(found[bad][0])} is out of range: the output has {classes} classes (0 to {classes - 1})."
        )
    return found


def _classes(output: Any, batch: int) -> torch.Tensor:
    main = main_output(output)
    if main.ndim != 2 or main.shape[0] != batch or main.shape[1] < 2:
        raise TargetError(
            f"accuracy needs an output (batch, classes); this one is {tuple(main.shape)} for {batch} sample(s). Give "
            "target=, a score that shall fall, such as (-1, 5) or a function of the output, in place of labels; or "
            "forward=, which can return the logits of one position."
        )
    return main
