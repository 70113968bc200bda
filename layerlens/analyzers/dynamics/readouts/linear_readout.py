"""Linear readouts: what can be told of a label from one layer's rows, on samples that the readout was not fitted to."""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from typing import Any, Literal

import torch

from layerlens.errors import InputError, need
from layerlens.model.borrowed import generator_states, restore_generators

Kind = Literal["classes", "numbers"]
FOLDS = 5
MOST_FEATURES = 1024
"""Wider rows are projected to so many random directions, which keeps distances to within some per cent
(Johnson & Lindenstrauss 1984)."""

FEWEST = 2
"""Samples of a class that are needed to fit and to test."""

PENALTIES = tuple(10.0**power for power in range(-3, 4))


@dataclasses.dataclass(frozen=True)
class Labels:
    """One label per sample.

    Attributes:
        values: classes by number, or numbers as they are, `(samples,)`.
        kind: which of the two.
        names: of the classes; empty for numbers.
    """

    values: torch.Tensor
    kind: Kind
    names: tuple[str, ...]

    def take(self, index: torch.Tensor) -> Labels:
        """Those of some samples."""
        return dataclasses.replace(self, values=self.values[index])

    @property
    def chance(self) -> float:
        """The score of always giving the same answer: the share of the largest class, or 0 for an R2."""
        if self.kind == "numbers":
            return 0.0
        return float(self.values.bincount().max()) / len(self.values)


def as_labels(given: Any, count: int, what: str) -> Labels:
    """Read labels: whole numbers, texts and booleans are classes, floating-point numbers are numbers.

    Args:
        given: one per sample.
        count: how many samples there are.
        what: is done, for the error.

    Raises:
        InputError: when they are not one per sample, or all the same.
    """
    listed = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(listed, str) or not isinstance(listed, (list, tuple)) or len(listed) != count:
        shown = f"{len(listed)} of them" if isinstance(listed, (list, tuple)) else repr(given)
        raise InputError(f"{what}: labels must hold one per sample, {count} in all; got {shown}.")
    if any(isinstance(one, (list, tuple, dict)) or one is None for one in listed):
        raise InputError(f"{what}: labels must hold one name or number per sample; got {listed[0]!r} for the first.")
    if len(set(listed)) < 2:
        raise InputError(f"{what}: all {count} samples have the label {listed[0]!r}; a readout needs two.")
    if all(isinstance(one, float) for one in listed):
        values = torch.tensor(listed, dtype=torch.float64)
        if not bool(values.isfinite().all()):
            raise InputError(f"{what}: a label is not finite.")
        return Labels(values, "numbers", ())
    names = sorted(set(listed), key=lambda one: (str(type(one)), one))
    place = {name: index for index, name in enumerate(names)}
    return Labels(torch.tensor([place[one] for one in listed]), "classes", tuple(map(str, names)))


def folds_of(labels: Labels, count: int, seed: int) -> torch.Tensor:
    """A fold for each sample, `(samples,)`; classes are spread evenly over the folds."""
    order = torch.randperm(len(labels.values), generator=torch.Generator().manual_seed(seed))
    if labels.kind == "classes":
        order = order[labels.values[order].argsort(stable=True)]
    folds = torch.empty(len(order), dtype=torch.int64)
    folds[order] = torch.arange(len(order)) % count
    return folds


class Readout:
    """A linear readout of a label: logistic regression for classes, ridge regression for numbers.

    Features are scaled to unit variance over the samples that it is fitted to. Wide rows are projected first.

    Args:
        penalty: inverse strength C of logistic regression's penalty. Ridge regression chooses its own by leave-one-out.
        seed: of the projection.

    Raises:
        MissingPackage: when scikit-learn is not installed.
    """

    def __init__(self, penalty: float, seed: int) -> None:
        before = generator_states()  # the first import of scikit-learn draws random numbers
        need("sklearn", "a linear readout")
        for part in ("linear_model", "pipeline", "preprocessing"):
            importlib.import_module(f"sklearn.{part}")
        restore_generators(before)
        self.penalty, self.seed = penalty, seed
        self.unfinished = 0

    def projected(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows, or at most `MOST_FEATURES` random directions of them."""
        if rows.shape[1] <= MOST_FEATURES:
            return rows
        generator = torch.Generator().manual_seed(self.seed)
        directions = torch.randn(rows.shape[1], MOST_FEATURES, generator=generator, dtype=torch.float32)
        projected: torch.Tensor = rows @ directions.to(rows.dtype) / MOST_FEATURES**0.5
        return projected

    def scores(
        self, rows: torch.Tensor, labels: Labels, fitted: torch.Tensor, tested: torch.Tensor, truth: Labels
    ) -> torch.Tensor:
        """How well each tested sample is read, `(tested,)`: 1 or 0 for a class, 1 - (y - f)^2 / var y for a number.

        Args:
            rows: `(samples, features)`.
            labels: to fit to, of all samples.
            fitted: index of the samples to fit to.
            tested: index of the samples to test on.
            truth: of all samples.
        """
        import numpy as np
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression, RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        known = labels.values[fitted]
        if labels.kind == "classes" and len(set(known.tolist())) < 2:  # nothing to tell apart: one answer for all
            return (truth.values[tested] == known[0]).double()
        estimator = (
            LogisticRegression(C=self.penalty, max_iter=2000, tol=1e-3)
            if labels.kind == "classes"
            else RidgeCV(alphas=PENALTIES)
        )
        model = make_pipeline(StandardScaler(), estimator)
        # numpy reports flags that other code left in the processor; what matters is checked below
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                model.fit(rows[fitted].numpy(), known.numpy())
            except ConvergenceWarning:
                self.unfinished += 1
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(rows[fitted].numpy(), known.numpy())
            found = torch.from_numpy(np.asarray(model.predict(rows[tested].numpy())))
        if not np.isfinite(estimator.coef_).all():
            raise InputError("a linear readout came out as numbers that are not finite; a smaller penalty= helps.")
        right = truth.values[tested]
        if labels.kind == "classes":
            return (found == right).double()
        scores: torch.Tensor = 1 - (found - right).square() / right.var(correction=0).clamp_min(1e-300)
        return scores

    def held_out(self, rows: torch.Tensor, labels: Labels, folds: torch.Tensor) -> torch.Tensor:
        """How well each sample is read by a readout fitted to the other folds, `(samples,)`."""
        found = torch.empty(len(rows), dtype=torch.float64)
        for fold in sorted(set(folds.tolist())):
            tested, fitted = (folds == fold).nonzero().squeeze(1), (folds != fold).nonzero().squeeze(1)
            found[tested] = self.scores(rows, labels, fitted, tested, labels)
        return found


def mean_and_error(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean over samples, and its standard error."""
    return scores.mean(dim=-1), scores.std(dim=-1) / scores.shape[-1] ** 0.5


def inputs_as_rows(tensors: dict[str, torch.Tensor], batch: int) -> torch.Tensor | None:
    """The floating-point inputs of each sample side by side, `(batch, numbers)`; None when there are none."""
    parts = [
        tensor.detach().reshape(batch, -1).cpu().to(torch.promote_types(tensor.dtype, torch.float32))
        for tensor in tensors.values()
        if tensor.ndim and tensor.shape[0] == batch and bool(tensor.isfinite().all())
    ]
    return torch.cat(parts, dim=1) if parts else None
