"""Linear readouts: how well a label is predicted from one layer's rows, on samples held out of the fit."""

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
"""Wider rows are projected to as many random directions, which keeps distances to within a few percent
(Johnson & Lindenstrauss 1984)."""

FEWEST = 2
"""Samples of a class needed to fit and to test."""

PENALTIES = tuple(10.0**power for power in range(-3, 4))


@dataclasses.dataclass(frozen=True)
class Truth:
    """The label of each sample.

    Attributes:
        values: classes by number, or numbers as they are, `(samples,)`.
        kind: which of the two.
        names: names of the classes; empty for numbers.
    """

    values: torch.Tensor
    kind: Kind
    names: tuple[str, ...]

    def take(self, index: torch.Tensor) -> Truth:
        """Return the labels of some samples."""
        return dataclasses.replace(self, values=self.values[index])

    @property
    def chance(self) -> float:
        """The score of always giving the same answer: the share of the largest class, or 0 for an R2."""
        if self.kind == "numbers":
            return 0.0
        return float(self.values.bincount().max()) / len(self.values)

    @property
    def smallest(self) -> int:
        """The number of samples of the smallest class; of all samples for numbers."""
        return int(self.values.bincount().min()) if self.kind == "classes" else len(self.values)


def as_truth(labels: list[Any], what: str) -> Truth:
    """Read labels: whole numbers, texts and booleans are classes, floating-point numbers are numbers.

    Args:
        labels: one per sample.
        what: name of the analysis, for errors.

    Raises:
        InputError: when they are all the same, or not finite.
    """
    if len(set(labels)) < 2:
        raise InputError(f"{what}: all {len(labels)} samples have the label {labels[0]!r}; a readout needs two.")
    if all(isinstance(one, float) for one in labels):
        values = torch.tensor(labels, dtype=torch.float64)
        if not bool(values.isfinite().all()):
            raise InputError(f"{what}: a label is not finite.")
        return Truth(values, "numbers", ())
    names = sorted(set(labels), key=lambda one: (str(type(one)), one))
    place = {name: index for index, name in enumerate(names)}
    return Truth(torch.tensor([place[one] for one in labels]), "classes", tuple(map(str, names)))


def true_labels(labels: list[Any] | None, what: str) -> Truth:
    """Read labels of which there are enough to fit and to test.

    Raises:
        InputError: when there are none, or too few of a class.
    """
    if labels is None:
        raise InputError(f"{what}: no labels: give labels=, one per sample, or data of pairs (x, label).")
    truth = as_truth(labels, what)
    if truth.kind == "classes" and truth.smallest < FEWEST:
        few = truth.names[int(truth.values.bincount().argmin())]
        raise InputError(f"{what}: class {few!r} has {truth.smallest} sample(s); {FEWEST} are needed to test.")
    if truth.smallest < FEWEST * 2 and truth.kind == "numbers":
        raise InputError(f"{what}: {len(truth.values)} samples are too few to fit and to test.")
    return truth


def split_folds(truth: Truth, count: int, seed: int) -> torch.Tensor:
    """Draw a fold for each sample, `(samples,)`; classes are spread evenly over the folds."""
    order = torch.randperm(len(truth.values), generator=torch.Generator().manual_seed(seed))
    if truth.kind == "classes":
        order = order[truth.values[order].argsort(stable=True)]
    folds = torch.empty(len(order), dtype=torch.int64)
    folds[order] = torch.arange(len(order)) % count
    return folds


class Readout:
    """A linear readout of a label: logistic regression for classes, ridge regression for numbers.

    Features are scaled to unit variance over the samples that it is fitted to. Wide rows are projected first.

    Args:
        penalty: inverse strength C of logistic regression's penalty. Ridge regression chooses its own by leave-one-out.
        seed: seed of the projection.

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
        """Project the rows to `MOST_FEATURES` random directions, if they are wider."""
        if rows.shape[1] <= MOST_FEATURES:
            return rows
        generator = torch.Generator().manual_seed(self.seed)
        directions = torch.randn(rows.shape[1], MOST_FEATURES, generator=generator, dtype=torch.float32)
        projected: torch.Tensor = rows @ directions.to(rows.dtype) / MOST_FEATURES**0.5
        return projected

    def scores(self, rows: torch.Tensor, truth: Truth, fitted: torch.Tensor, tested: torch.Tensor) -> torch.Tensor:
        """Score the prediction of each tested sample, `(tested,)`: 1 or 0 for a class, 1 - (y - f)^2 / var y else.

        Args:
            rows: `(samples, features)`.
            truth: labels of all samples.
            fitted: index of the samples to fit to.
            tested: index of the samples to test on.

        Raises:
            InputError: when the fit gives numbers that are not finite.
        """
        import numpy as np
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression, RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        known = truth.values[fitted]
        if truth.kind == "classes" and len(set(known.tolist())) < 2:  # one answer for all
            return (truth.values[tested] == known[0]).double()
        estimator = (
            LogisticRegression(C=self.penalty, max_iter=2000, tol=1e-3)
            if truth.kind == "classes"
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
            answers = torch.from_numpy(np.asarray(model.predict(rows[tested].numpy())))
        if not np.isfinite(estimator.coef_).all():
            raise InputError("a linear readout came out as numbers that are not finite; a smaller penalty= helps.")
        right = truth.values[tested]
        if truth.kind == "classes":
            return (answers == right).double()
        scores: torch.Tensor = 1 - (answers - right).square() / right.var(correction=0).clamp_min(1e-300)
        return scores

    def held_out(self, rows: torch.Tensor, truth: Truth, folds: torch.Tensor) -> torch.Tensor:
        """Score each sample by a readout fitted to the other folds, `(samples,)`."""
        scores = torch.empty(len(rows), dtype=torch.float64)
        for fold in sorted(set(folds.tolist())):
            tested, fitted = (folds == fold).nonzero().squeeze(1), (folds != fold).nonzero().squeeze(1)
            scores[tested] = self.scores(rows, truth, fitted, tested)
        return scores

    def score(self, rows: torch.Tensor, truth: Truth, folds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean of `held_out` over samples, and its standard error."""
        scores = self.held_out(rows, truth, folds)
        return scores.mean(), scores.std() / len(scores) ** 0.5


def inputs_as_rows(tensors: dict[str, torch.Tensor], batch: int) -> torch.Tensor | None:
    """Return the floating-point inputs of each sample side by side, `(batch, numbers)`; None if there are none."""
    parts = [
        tensor.detach().reshape(batch, -1).cpu().to(torch.promote_types(tensor.dtype, torch.float32))
        for tensor in tensors.values()
        if tensor.ndim and tensor.shape[0] == batch and bool(tensor.isfinite().all())
    ]
    return torch.cat(parts, dim=1) if parts else None
