"""Samples part by part, each ready to be run on changed inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from layerlens.analyzers.common.calls.call_sites import Site
from layerlens.analyzers.common.leaves.leaves import find_leaves
from layerlens.errors import InputError, check_count
from layerlens.inputs.batches import batches
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.targets.target import Spec, Target, as_target

from ..stepped_runs import Job, Values
from .prediction_change import Verdict, verdict


@dataclasses.dataclass(frozen=True)
class Part:
    """Some samples.

    Attributes:
        job: runs the model on them.
        verdict: reads the output.
        start: index of the first sample.
        loss: of the samples as they are, `(batch,)`.
        held: 1 where the answer is right as they are, `(batch,)`; or the score.
    """

    job: Job
    verdict: Verdict
    start: int
    loss: torch.Tensor
    held: torch.Tensor

    @property
    def batch(self) -> int:
        """How many they are."""
        return self.job.inputs.batch

    def __call__(
        self, values: Values, read: Callable[[Site, Any], None] | None = None, sites: list[Site] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and answer with `values` in the place of the leaves, `(batch,)` each; `read(site, output)` at sites."""
        return self.verdict(self.run(values, read, sites), torch.arange(self.batch))

    def run(
        self, values: Values, read: Callable[[Site, Any], None] | None = None, sites: list[Site] | None = None
    ) -> Any:
        """The output with `values` in the place of the leaves."""
        return self.job.run(values, read or (lambda site, output: None), sites or [])


def parts(
    model: nn.Module,
    x: Input,
    labels: Any,
    *,
    target: Spec,
    loss: str,
    batch_size: int,
    seed: int,
    forward: Forward | None,
    label: str,
) -> Iterator[Part]:
    """Go through the samples of a borrowed model.

    Args:
        model: borrowed.
        x: an input as in `as_inputs`, or a Dataset or DataLoader, which is read batch by batch and may hold the labels.
        labels: the right class of each sample, or None.
        target: a score in place of classes; one with a class for each sample goes with an input only.
        loss: see `Verdict`.
        batch_size: samples at once, at most.
        seed: for models that draw numbers.
        forward: to use in place of calling the model.
        label: what is being done.

    Raises:
        InputError: when labels and samples do not fit each other.
    """
    check_count("batch_size", batch_size)
    aim = None if target is None else as_target(target)
    for start, inputs, own, place in _read(x, labels, batch_size):
        leaves = find_leaves(model, inputs, forward)
        leaves = {name: leaf for name, leaf in leaves.items() if leaf.value.ndim}
        if not leaves:
            raise InputError("the input holds single numbers only, and no floating-point tensor with a batch axis.")
        job = Job(model, inputs, forward, leaves, {}, [], 1, seed, False, label)
        with torch.no_grad():
            output = job.run(job.start, lambda site, output: None)
            judge = verdict(
                output, own, None if aim is None else _for_rows(aim, place, inputs.batch), loss, inputs.batch
            )
            clean, held = judge(output, torch.arange(inputs.batch))
        yield Part(job, judge, start, clean.cpu(), held)


def _read(x: Any, labels: Any, size: int) -> Iterator[tuple[int, Inputs, Any, int | None]]:
    """(start, inputs, labels, place in the whole input or None) of each part."""
    if isinstance(x, (Dataset, DataLoader)):
        given = None if labels is None else list(labels)
        seen = 0
        for batch in batches(x, size, progress=False):
            count = batch.inputs.batch
            seen = batch.start + count
            own = batch.labels if given is None else given[batch.start : seen]
            if given is not None and len(own or ()) != count:
                raise InputError(f"there are {len(given)} labels, and more samples.")
            yield batch.start, batch.inputs, own, None
        if given is not None and len(given) != seen:
            raise InputError(f"there are {len(given)} labels for {seen} samples.")
        return
    inputs = as_inputs(x)
    whole = inputs.batch
    if labels is not None and not isinstance(labels, int):
        try:
            labels = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"labels must be class indices, one per sample; got {labels!r:.80}.") from error
        if labels.ndim and len(labels) != whole:
            raise InputError(f"there are {len(labels)} labels for {whole} sample(s); give one per sample.")
    for start in range(0, whole, size):
        rows = torch.arange(start, min(start + size, whole))
        mine = labels[rows] if isinstance(labels, torch.Tensor) and labels.ndim else labels
        yield start, inputs if len(rows) == whole else inputs.rows(rows), mine, start


def _for_rows(aim: Target, place: int | None, batch: int) -> Target:
    """The target for a part whose first sample has the index `place`; one class per sample is told by index."""
    if aim.each is None:
        return aim
    if place is None:
        raise InputError("a target with a class for each sample needs an input and not a data set; give labels.")
    function = aim.function
    return dataclasses.replace(
        aim,
        function=lambda output, rows: function(output, rows + place),
        each=aim.each[place : place + batch],
    )
