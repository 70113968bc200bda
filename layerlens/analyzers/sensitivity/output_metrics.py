"""What is read of a model's output, and how far two outputs differ."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch

from layerlens.analyzers.common.calls.measured_calls import by_row
from layerlens.errors import OptionError, TargetError, choose
from layerlens.inputs.inputs import Inputs
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Spec, Target, as_target

Metric = Literal["auto", "kl", "flip", "relative_change", "change"]

QUANTITIES = {
    "kl": ("divergence of the output under noise", "nats"),
    "flip": ("flipped decisions under noise", "share of samples"),
    "relative_change": ("relative change of the output under noise", "1"),
    "change": ("change of the output under noise", "units of the output"),
}
"""Metric -> what is measured, and its units."""


@dataclasses.dataclass(frozen=True)
class Readout:
    """Reads outputs and compares them row by row.

    Attributes:
        metric: a key of `QUANTITIES`.
        target: what to score; None reads the main output.
        probabilities: whether the output is a distribution already and not logits.
    """

    metric: str
    target: Target | None
    probabilities: bool = False

    @property
    def text(self) -> str:
        """A description of what is compared."""
        of = {"kl": "of the output" if self.probabilities else "of softmax(output)", "flip": "of the largest output"}
        what = "of the output" if self.target is None else f"of the score {self.target.label!r}"
        return f"{self.metric} {of.get(self.metric, what)}"

    @property
    def signed(self) -> bool:
        """Whether the change is a signed difference of scores."""
        return self.target is not None and self.metric == "change"

    def __call__(self, output: Any, rows: torch.Tensor) -> torch.Tensor:
        """Return the numbers to compare, `(len(rows), ...)`, float64 on the CPU.

        Raises:
            TargetError: when the output has no batch axis.
        """
        if self.target is not None:
            return self.target(output, rows).double().cpu().unsqueeze(1)
        main = main_output(output)
        if main.ndim == 0 or len(main) != len(rows):
            raise TargetError(
                f"the model's output {tuple(main.shape)} has no first axis of {len(rows)} samples, so noise cannot "
                "be measured by sample. Give target=, a function from the output to a score (batch,)."
            )
        return main.double().cpu()

    def change(self, clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        """Return the metric of each row, `(rows,)`."""
        if self.metric == "flip":
            return (clean.argmax(dim=1) != noisy.argmax(dim=1)).double()
        if self.metric == "kl":
            before, after = self._log(clean), self._log(noisy)
            terms = torch.where(before.isneginf(), 0.0, before.exp() * (before - after))  # 0 log 0 = 0
            return terms.sum(dim=1).clamp_min(0)  # rounding can make it slightly negative
        rows = len(clean)
        difference: torch.Tensor = by_row(noisy - clean, 0, rows).norm(dim=1)
        if self.metric == "change":
            return difference
        relative: torch.Tensor = difference / by_row(clean, 0, rows).norm(dim=1)
        return relative.masked_fill(difference == 0, 0.0)

    def _log(self, output: torch.Tensor) -> torch.Tensor:
        if self.probabilities:
            return output.log()
        return output.log_softmax(dim=1)


def choose_readout(
    metric: Metric, target: Spec, output: Any, inputs: Inputs, samples: torch.Tensor | None = None
) -> Readout:
    """Choose what to read and compare, from the clean output.

    Args:
        metric: a key of `QUANTITIES`, or `"auto"`.
        target: what to score; None for the whole output.
        output: the clean output.
        inputs: the input.
        samples: which samples of those that the target was given for it holds, `(batch,)`; None for all.

    Raises:
        OptionError: when the metric is unknown or does not fit.
        TargetError: when the target does not fit the output, or has no tensor to read.
    """
    choose("metric", metric, ("auto", *QUANTITIES))
    if target is not None:
        if metric in ("kl", "flip"):
            raise OptionError(f"metric {metric!r} compares whole outputs; a target is one score: metric='change'.")
        resolved = as_target(target).on(inputs, samples).resolve(output)
        resolved(output, torch.arange(inputs.batch))
        return Readout("change" if metric == "auto" else metric, resolved)
    main = main_output(output)
    classes = main.ndim == 2 and main.shape[0] == inputs.batch and main.shape[1] > 1
    if metric == "auto":
        metric = "kl" if classes else "relative_change"
    elif metric in ("kl", "flip") and not classes:
        raise OptionError(
            f"metric {metric!r} needs an output (batch, classes); this one is {tuple(main.shape)}. "
            "metric='relative_change' fits any output."
        )
    distribution = classes and bool((main >= 0).all()) and bool(((main.double().sum(dim=1) - 1).abs() < 1e-3).all())
    return Readout(metric, None, distribution)
