"""What a model's output says about labels: the likelihoods whose curvature is the Fisher information."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from layerlens.errors import InputError, OptionError, TargetError, choose
from layerlens.inputs.inputs import Inputs
from layerlens.model.trees import describe, named_tensors
from layerlens.targets.outputs import main_output

Kind = Literal["auto", "categorical", "gaussian", "bernoulli"]
KINDS = ("auto", "categorical", "gaussian", "bernoulli")

EXACT = 20
"""Largest number of classes, or output values, that are summed over; with more, labels are drawn."""

IGNORED = -100
"""The label of a place that is ignored, as in torch."""


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How labels are distributed around an output.

    Attributes:
        kind: `"categorical"`: softmax of the logits; `"gaussian"`: N(output, 1), `"bernoulli"`: sigmoid of each logit.
        probabilities: whether the output of a categorical one is a distribution already.
        axis: axis of the classes.
    """

    kind: str
    probabilities: bool
    axis: int

    def read(self, output: object) -> torch.Tensor:
        """Return the logits or means, `(batch, places, numbers)`; one place except for texts and segmentations."""
        main = main_output(output)
        if self.kind != "categorical":
            return main.reshape(len(main), 1, -1)
        if self.probabilities:
            main = main.clamp_min(torch.finfo(main.dtype).tiny).log()
        return main.movedim(self.axis, -1).reshape(len(main), -1, main.shape[self.axis])

    def weights(self, y: torch.Tensor, inputs: Inputs, labels: torch.Tensor | None) -> torch.Tensor:
        """Return the weight of each place, `(batch, places)`: equal shares of those that are not padding."""
        counted = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
        mask = inputs.tensors().get("attention_mask")
        if self.kind == "categorical" and mask is not None and mask.shape == counted.shape and y.shape[1] > 1:
            counted &= mask.bool()
        if self.kind == "categorical" and labels is not None:
            counted &= labels.to(y.device).reshape(self._label_shape(y, labels)) != IGNORED
        return counted.to(y.dtype) / counted.sum(dim=1, keepdim=True).clamp_min(1)

    def factors(self, y: torch.Tensor) -> list[torch.Tensor] | None:
        """Return vectors s, shaped like y, whose outer products sum to the Fisher information of y; None for too many.

        Categorical: sqrt(p_c) (e_c - p) for every class c; Gaussian: e_k; Bernoulli: sqrt(p (1 - p)) e_k.
        """
        if y.shape[1] * y.shape[2] > EXACT:
            return None
        numbers = y.shape[2]
        e = torch.eye(numbers, dtype=y.dtype, device=y.device).reshape(numbers, 1, 1, numbers)
        if self.kind == "categorical":
            p = y.detach().softmax(dim=2)
            return list(p.movedim(2, 0).unsqueeze(3).sqrt() * (e - p)) if y.shape[1] == 1 else None
        if self.kind == "gaussian":
            return list(e.expand(numbers, *y.shape))
        p = y.detach().sigmoid()
        return list(e * (p * (1 - p)).sqrt())

    def draw(self, y: torch.Tensor, weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw a random s, shaped like y, whose mean outer product is the Fisher information of the output.

        Labels are drawn from the model's own distribution: s = e_label - p, or label - p; for a Gaussian, where label
        minus mean always has variance 1, random signs serve as well and scatter less.
        """
        flat = y.detach().flatten(0, 1)
        if self.kind == "categorical":
            p = flat.double().softmax(dim=1).cpu()
            label = torch.multinomial(p, 1, generator=generator)
            s = torch.zeros_like(p).scatter_(1, label, 1.0) - p
        elif self.kind == "gaussian":
            s = torch.randint(2, flat.shape, generator=generator).double() * 2 - 1
        else:
            p = flat.double().sigmoid().cpu()
            s = (torch.rand(p.shape, generator=generator, dtype=torch.float64) < p).double() - p
        return s.to(y).reshape(y.shape) * weights.sqrt().unsqueeze(2)

    def residual(self, y: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return minus the gradient of the loss with respect to y: what the empirical Fisher is made from."""
        start = y.detach().requires_grad_()
        loss = self.losses(start, labels, weights).sum()
        (gradient,) = torch.autograd.grad(loss, start)
        return -gradient

    def losses(self, y: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return -log p(labels | y) of each sample up to a constant, `(batch,)`, averaged over places.

        Cross-entropy, half the squared distance, or the binary cross-entropies summed.

        Raises:
            InputError: when the labels do not fit.
        """
        expected = self._label_shape(y, labels)
        labels = labels.to(y.device).reshape(expected)
        if self.kind == "categorical":
            if labels.is_floating_point() or labels.dtype == torch.bool:
                raise InputError(f"labels of classes must be whole numbers, got {describe(labels)}.")
            out_of_range = (labels != IGNORED) & ((labels < 0) | (labels >= y.shape[2]))
            if bool(out_of_range.any()):
                raise InputError(
                    f"label {int(labels[out_of_range][0])} is none of the {y.shape[2]} classes of the output."
                )
            chosen = labels.clamp_min(0).long().unsqueeze(2)
            return -(y.log_softmax(dim=2).gather(2, chosen).squeeze(2) * weights).sum(dim=1)
        labels = labels.to(y.dtype)
        if self.kind == "gaussian":
            return (y - labels).square().sum(dim=(1, 2)) / 2
        return torch.nn.functional.binary_cross_entropy_with_logits(y, labels, reduction="none").sum(dim=(1, 2))

    def _label_shape(self, y: torch.Tensor, labels: torch.Tensor) -> tuple[int, ...]:
        """Return the shape that labels must have.

        Raises:
            InputError: when these labels do not fit.
        """
        expected = tuple(y.shape[:2]) if self.kind == "categorical" else tuple(y.shape)
        if labels.numel() != torch.Size(expected).numel() or len(labels) != len(y):
            raise InputError(
                f"labels {describe(labels)} do not fit an output that is {self.kind}: {expected} numbers are needed "
                "for (samples, places), or for (samples, places, outputs)."
            )
        return expected

    def accuracy(self, y: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the share of correct places of each sample, `(batch,)`.

        Raises:
            OptionError: when labels are not classes.
        """
        if self.kind == "gaussian":
            raise OptionError("metric 'accuracy' needs classes; this output is read as real numbers. Use 'loss'.")
        if self.kind == "bernoulli":
            return ((y > 0).to(y.dtype) == labels.to(y).reshape(y.shape)).double().mean(dim=(1, 2))
        correct = y.argmax(dim=2) == labels.to(y.device).reshape(y.shape[:2])
        return (correct.double() * weights.double()).sum(dim=1)


def choose_likelihood(kind: Kind, output: object, batch: int) -> Likelihood:
    """Choose the likelihood from the output of the model.

    `"auto"` is categorical for an output `(batch, classes)` with two or more classes and for `logits` `(batch, place,
    classes)`, and Gaussian for any other.

    Raises:
        OptionError: when the kind is unknown or does not fit.
        TargetError: when the output has no batch axis.
    """
    choose("likelihood", kind, KINDS)
    main = main_output(output)
    if main.ndim == 0 or len(main) != batch:
        raise TargetError(f"the model's output {tuple(main.shape)} has no first axis of {batch} samples.")
    classes = main.ndim == 2 and main.shape[1] > 1
    named = main.ndim == 3 and any(name == "logits" and one is main for name, one in named_tensors(output))
    if kind == "auto":
        kind = "categorical" if classes or named else "gaussian"
    axis = -1 if main.ndim == 3 else 1
    if kind == "categorical" and (main.ndim < 2 or main.shape[axis] < 2):
        raise OptionError(f"likelihood 'categorical' needs two or more classes; the output is {tuple(main.shape)}.")
    sums = main.detach().double().sum(dim=axis) if kind == "categorical" else None
    given = sums is not None and bool((main >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())
    return Likelihood(str(kind), given, axis)
