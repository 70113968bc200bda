"""TRAK by dattri: influence as a linear regression on gradients of the log odds, projected at random."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from layerlens.errors import InputError
from layerlens.inputs.batches import Data
from layerlens.progress import track
from layerlens.targets.outputs import log_probabilities

from .carrier import NOT_FINITE, Carrier, Loss, Pairs, check_loss, usual_loss
from .checkpoints import Checkpoint, load


def by_dattri(
    carrier: Carrier,
    states: list[Checkpoint | None],
    data: Data,
    tests: Data | None,
    loss: Loss | None,
    damping: float | None,
    rank: int,
    seed: int,
    progress: bool | None,
) -> torch.Tensor:
    """Return the influences `(x, training)`, a mean over states; `(1, training)` of each sample on itself.

    Of dattri are the projection, the regression and the mean. The gradients are taken by autograd, because dattri's
    torch.func.vmap runs few models and nan_to_num hides what is not finite.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit, as dattri is imported
        trak = importlib.import_module("dattri.algorithm.trak")
    count = sum(one.numel() for one in carrier.parameters())
    task = _Task(carrier, states, loss, damping, min(rank, count))
    kind = "identity" if rank >= count else "normal"
    options = {"proj_dim": rank, "proj_max_batch_size": 32, "proj_seed": seed, "proj_type": kind, "device": "cpu"}
    with _borrowed(trak, progress):
        task.attributor = trak.TRAKAttributor(task, task.probability, options)
        task.attributor.norm_scaler, task.attributor.correct_probability_func = 1.0, task.probability
        training = _Batches(Pairs(data, carrier.model, "the training data"))
        if tests is None:
            alone: torch.Tensor = task.attributor.self_attribute(training)
            return alone.reshape(1, -1)
        found: torch.Tensor = task.attributor.attribute(_Batches(Pairs(tests, carrier.model, "x")), training)
        return found.T


class _Task:
    """What dattri asks of a task: states of a model, and the gradient of the log odds of each sample's label."""

    def __init__(
        self, carrier: Carrier, states: list[Checkpoint | None], loss: Loss | None, damping: float | None, rank: int
    ) -> None:
        self.carrier, self.states, self.loss, self.damping, self.rank = carrier, states, loss, damping, rank
        self.attributor: Any = None
        self._loaded, self._squares, self._odds = -1, 0.0, torch.zeros(0)

    def get_model(self) -> nn.Module:
        return nn.Module()

    def get_checkpoints(self) -> list[Checkpoint | None]:
        return self.states

    def get_param(self, ckpt_idx: int, layer_name: None = None) -> tuple[None, None]:
        if ckpt_idx != self._loaded:
            load(self.carrier.model, self.states[ckpt_idx])
            self._loaded, self._squares = ckpt_idx, 0.0
        return None, None

    def get_grad_target_func(self, in_dims: Any) -> Callable[[None, dict[str, Any]], torch.Tensor]:
        return lambda parameters, batch: self._gradients(**batch)

    def get_grad_loss_func(self, in_dims: Any) -> Callable[[None, dict[str, Any]], torch.Tensor]:
        def of_training(parameters: None, batch: dict[str, Any]) -> torch.Tensor:
            rows = self._gradients(**batch)
            self._squares += float(rows.square().sum())  # a projection keeps it: the trace of Phi^T Phi
            self.attributor.regularization = self.damping or 1e-6 * self._squares / self.rank
            return rows

        return of_training

    def probability(self, parameters: None, batch: dict[str, Any]) -> torch.Tensor:
        return self._odds.sigmoid()

    def _gradients(self, inputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return a row of float64 for each sample.

        Raises:
            InputError: when they are not finite.
        """
        weights = list(self.carrier.parameters())
        odds = _log_odds(self.loss, self.carrier(inputs), labels)
        self._odds = odds.detach().cpu().double()
        rows = []
        for one in odds:
            found = torch.autograd.grad(one, weights, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([part.flatten().cpu().double() for part in found]))
        stacked = torch.stack(rows)
        if not bool(stacked.isfinite().all() and self._odds.isfinite().all()):
            raise InputError(NOT_FINITE)
        return stacked


def _log_odds(loss: Loss | None, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return log p / (1 - p) of each sample's label, `(batch,)` (Park et al. 2023).

    Raises:
        InputError: when the loss is not minus a log likelihood.
    """
    losses = check_loss(loss or usual_loss, output, labels)
    if loss is None and not labels.is_floating_point():
        scores = log_probabilities(output)
        own = scores.gather(1, labels[:, None])[:, 0]
        return own - scores.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)
    if loss is None:
        raise InputError("method='trak' takes class labels, and these are real numbers; take method='tracin'.")
    if not bool((losses > 0).all()):
        raise InputError(
            f"method='trak' takes the probability of a label from loss=, as -log p above 0, and got "
            f"{float(losses.detach().min()):.3g}. Leave loss= out for class indices, or take method='tracin'."
        )
    return -losses - torch.log(-torch.expm1(-losses))


class _Batches:
    """Batches in the form that dattri passes on as they are."""

    sampler = None

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"inputs": inputs, "labels": labels} for inputs, labels in self.pairs)


@contextlib.contextmanager
def _borrowed(trak: Any, progress: bool | None) -> Iterator[None]:
    """Show our progress instead of dattri's, and restore its default options, which it overwrites."""
    bar, defaults = trak.tqdm, dict(trak.DEFAULT_PROJECTOR_KWARGS)
    trak.tqdm = lambda batches, desc, leave: track(batches, "influence", enabled=progress)
    try:
        yield
    finally:
        trak.tqdm = bar
        trak.DEFAULT_PROJECTOR_KWARGS.clear()
        trak.DEFAULT_PROJECTOR_KWARGS.update(defaults)
