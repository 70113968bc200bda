"""Samples in chunks, each ready to run on changed inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from layerlens.analyzers.common.calls.measured_calls import MeasuredCall, floating
from layerlens.analyzers.common.held_inputs import held_input
from layerlens.analyzers.common.samples import Known, or_none, warn_of_influence
from layerlens.analyzers.common.statistics import nearly_equal
from layerlens.axes.batch_axis import check_batch_axis
from layerlens.errors import InputError, OptionError, check_count
from layerlens.inputs.batches import Samples, batches
from layerlens.inputs.inputs import Forward, Hold, Input, Inputs, as_inputs
from layerlens.model.borrowed import seed_torch
from layerlens.targets.target import Spec, Target, as_target

from ..model_run import ModelRun
from ..stepped_runs import SteppedRun, Values, stepped_leaves
from .prediction_change import AnswerReader, Labels, answer_reader

Preprocess: TypeAlias = Callable[..., Any]
"""Raw inputs -> what the model takes: a tensor, a tuple of arguments, or a dict of them."""


def after(preprocess: Preprocess | None, forward: Forward | None, normalized: object = None) -> Forward | None:
    """Return what to call instead of the model, so that it takes raw inputs.

    Raises:
        OptionError: when `preprocess` is not a function, or the input is said to be normalized already.
    """
    if preprocess is None:
        return forward
    if not callable(preprocess) or normalized is not None:
        given = "normalized= says that x is preprocessed already" if callable(preprocess) else f"got {preprocess!r}"
        raise OptionError(f"preprocess= is a function of raw inputs, such as lambda x: (x - mean) / std; {given}.")

    def run(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        made = preprocess(*args, **kwargs)
        named = dict(made) if isinstance(made, Mapping) else {}
        given = () if named else made if isinstance(made, tuple) else (made,)
        return model(*given, **named) if forward is None else forward(model, *given, **named)

    return run


def named(preprocess: Preprocess | None) -> dict[str, str]:
    """Return the setting that says what raw inputs go through, if anything."""
    return {} if preprocess is None else {"preprocess": getattr(preprocess, "__name__", type(preprocess).__name__)}


@dataclasses.dataclass(frozen=True)
class SampleChunk:
    """Some samples.

    Attributes:
        stepped: runs the model on them.
        reader: reads the output.
        start: index of the first sample.
        loss: loss of the unchanged samples, `(batch,)`.
        held: 1 where the answer to the unchanged sample is correct, `(batch,)`; or the score.
    """

    stepped: SteppedRun
    reader: AnswerReader
    start: int
    loss: torch.Tensor
    held: torch.Tensor

    @property
    def batch(self) -> int:
        """The number of samples."""
        return self.stepped.run.batch

    def __call__(
        self,
        values: Values,
        read: Callable[[MeasuredCall, Any], None] | None = None,
        sites: list[MeasuredCall] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return loss and answer with the leaves replaced by `values`, `(batch,)` each; calls `read(site, output)`."""
        return self.reader(self.run(values, read, sites), torch.arange(self.batch))

    def run(
        self,
        values: Values,
        read: Callable[[MeasuredCall, Any], None] | None = None,
        sites: list[MeasuredCall] | None = None,
    ) -> Any:
        """Return the output with the leaves replaced by `values`."""
        return self.stepped.evaluate(values, read or (lambda site, output: None), sites or [])


@dataclasses.dataclass(frozen=True)
class LabeledSamples:
    """The samples to attack or corrupt, and how their answers are read.

    Attributes:
        x: an input, or a Dataset or DataLoader, which is read batch by batch and may hold the labels.
        labels: the correct class of each sample, or None.
        target: a score instead of classes.
        loss: loss to raise, see `AnswerReader`.
        batch_size: largest number of samples in a chunk.
        seed: seed of every run, for models that draw numbers.
        forward: `forward(model, *args, **kwargs)` to call instead of the model.
        hold: inputs that are held fixed.
        targeted: whether the labels are the classes to reach, which the labels of a data set are not.
    """

    x: Samples
    labels: Labels | None
    target: Spec
    loss: str
    batch_size: int
    seed: int
    forward: Forward | None
    hold: Hold = None
    targeted: bool = False


def sample_chunks(model: nn.Module, samples: LabeledSamples) -> Iterator[SampleChunk]:
    """Yield the samples of a borrowed model in chunks.

    Raises:
        InputError: when labels and samples do not fit each other, or rows are places of one sample.
    """
    check_count("batch_size", samples.batch_size)
    target = None if samples.target is None else as_target(samples.target)
    for start, inputs, labels, first_row in _labeled_inputs(model, samples):
        inputs = held_input(model, inputs, samples.hold, samples.forward)
        run = ModelRun(model, inputs, samples.forward, samples.seed, progress=False)
        stepped = SteppedRun(run, stepped_leaves(run), "samples")
        with torch.no_grad():
            output = stepped.evaluate(stepped.start, lambda site, output: None)
            check_batch_axis(model, inputs, samples.forward, output)
            chunk_target = None if target is None else _target_of_rows(target, first_row, inputs)
            given = None if samples.targeted and samples.labels is None else labels
            reader = answer_reader(output, given, chunk_target, samples.loss, inputs.batch, targeted=samples.targeted)
            loss, held = reader(output, torch.arange(inputs.batch))
        yield SampleChunk(stepped, reader, start, loss.cpu(), held)


def _labeled_inputs(
    model: nn.Module, samples: LabeledSamples
) -> Iterator[tuple[int, Inputs, Labels | None, int | None]]:
    """Yield start, inputs, labels, and first row of the whole input (None for a data set) of each chunk.

    Raises:
        InputError: when labels and samples do not fit each other.
    """
    x, labels, size = samples.x, samples.labels, samples.batch_size
    if isinstance(x, (Dataset, DataLoader)):
        given = None if labels is None else list(cast("Sequence[int]", labels))
        seen = 0
        for batch in batches(x, size, progress=False):
            count = batch.inputs.batch
            seen = batch.start + count
            chunk_labels = batch.labels if given is None else given[batch.start : seen]
            if given is not None and len(chunk_labels or ()) != count:
                raise InputError(f"there are {len(given)} labels and more samples than that.")
            yield batch.start, batch.inputs, chunk_labels, None
        if given is not None and len(given) != seen:
            raise InputError(f"there are {len(given)} labels for {seen} samples.")
        return
    inputs = as_inputs(cast("Input", x))
    whole = inputs.batch
    if labels is not None and not isinstance(labels, int):
        try:
            labels = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"labels must be class indices, one per sample; got {labels!r:.80}.") from error
        if labels.ndim and len(labels) != whole:
            raise InputError(f"there are {len(labels)} labels for {whole} sample(s); give one per sample.")
    if whole > size and _influence(model, inputs, samples):
        size = whole
    for start in range(0, whole, size):
        rows = torch.arange(start, min(start + size, whole))
        row_labels = labels[rows] if isinstance(labels, torch.Tensor) and labels.ndim else labels
        yield start, inputs if len(rows) == whole else inputs.rows(rows), row_labels, start


def _influence(model: nn.Module, inputs: Inputs, samples: LabeledSamples) -> bool:
    """Return whether the first samples get another output in a smaller chunk; no if the model draws numbers."""
    few, more = max(1, samples.batch_size // 2), max(2, samples.batch_size)

    def run(count: int, seed: int = samples.seed) -> list[torch.Tensor]:
        seed_torch(seed)
        output = inputs.rows(torch.arange(count)).run(model, samples.forward)
        return [tensor for tensor in floating(output) if tensor.ndim and len(tensor) == count]

    def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return len(one) == len(other) and all(nearly_equal(a, b[: len(a)]) for a, b in zip(one, other, strict=True))

    with torch.no_grad():
        small, large = or_none(lambda: run(few)), or_none(lambda: run(more))
        known = small is not None and large is not None
        if known and (same(small, large) or not same(small, run(few, samples.seed + 1))):
            return False
    warn_of_influence(inputs.batch, run=Known(model, inputs, samples.forward))
    return True


def _target_of_rows(target: Target, first_row: int | None, inputs: Inputs) -> Target:
    """Return the target of a chunk; a target per sample needs to know the rows.

    Raises:
        InputError: when such a target is used with a data set.
    """
    if target.each is not None and first_row is None:
        raise InputError("a target with a class for each sample needs an input, not a data set; give labels.")
    first = first_row or 0
    return target.on(inputs, torch.arange(first, first + inputs.batch))
