"""Make shards: read batches, run the analysis on each, and store each shard when it is complete."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import warnings
from collections.abc import Generator, Iterable, Iterator
from typing import Literal, TypeAlias

import torch
from torch import nn

from layerlens.errors import LayerNotFound, MissingPackage, OptionError, SampleError, SelectionError, StoreError
from layerlens.inputs.batches import Batch
from layerlens.model.borrowed import generator_states, restore_generators, seed_numpy, seed_torch
from layerlens.progress import counting
from layerlens.turns import raise_held, turn

from ..data.background import Writer, read_ahead
from ..data.source import BadSample, BatchOrBad, Source, first_sample, size
from ..jobs.base import Collector, Job
from ..store.plan import Plan
from ..store.shard_storage import ShardStorage

OnError = Literal["raise", "record"]
WRONG_FOR_ALL = (OptionError, LayerNotFound, SelectionError, MissingPackage, StoreError, MemoryError)
"""Errors about the options of the analysis, not about a sample: they always end the run."""

BatchWarning: TypeAlias = tuple[int, int, str]
"""First sample of a batch, the one after its last, and a warning of the analysis."""


@contextlib.contextmanager
def collected_warnings(batch: BatchOrBad, collected: list[BatchWarning]) -> Iterator[None]:
    """Collect the warnings raised in the `with` block, with the samples of the batch.

    Yields:
        Nothing.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    start = first_sample(batch) if caught else 0
    collected += {(start, start + size(batch), str(one.message)): None for one in caught}


@contextlib.contextmanager
def restored_generators() -> Iterator[None]:
    """Restore the random generators at the end of the `with` block.

    Yields:
        Nothing.
    """
    with turn:  # not in the middle of a batch of another thread
        before = generator_states()
    try:
        yield
    finally:
        with turn:
            restore_generators(before)


def seed(number: int) -> None:
    """Seed the random generators, including those of GPUs in use."""
    seed_torch(number)
    seed_numpy(number % 2**32)
    random.seed(number)


@dataclasses.dataclass
class Work:
    """Everything that a process needs to make shards, with any engine.

    Attributes:
        model: any module.
        job: analysis of each sample.
        source: the data.
        plan: which samples are in which shard.
        on_error: whether a bad sample ends the run or is noted.
        prefetch: whether batches are read in a thread while the model runs.
    """

    model: nn.Module
    job: Job
    source: Source
    plan: Plan
    on_error: OnError = "raise"
    prefetch: bool = True

    def make(self, shards: Iterable[int], storage: ShardStorage, *, progress: bool | None, total: int | None) -> None:
        """Make shards and store them, in their order.

        Random numbers of a model are seeded for each batch with the number of its first sample: they differ between
        batches, and are the same when the run is resumed or another engine makes the shard.

        Raises:
            SampleError: for a bad sample, unless bad samples are noted.
        """
        spans = (span for number in shards for span in self.plan.batches(number))
        batches: Generator[BatchOrBad, None, None] = self.source.batches(spans)
        span = range(-1)
        collector: Collector | None = None
        collected: list[BatchWarning] = []
        reading = read_ahead(batches) if self.prefetch else ([batch] for batch in batches)
        with (
            restored_generators(),
            Writer() as writer,
            contextlib.closing(reading),
            counting(self.job.kind, total, progress, unit="samples") as done,
        ):
            for several in reading:
                while several:
                    raise_held()
                    start = first_sample(several[0])
                    if collector is None:
                        span, collected = self.plan.span(start // self.plan.shard), []
                        collector = self.job.collector(self.model, len(span))
                    stop = self._take_some(collector, several, span.stop, collected)
                    done(stop - start)
                    if stop == span.stop:
                        self._store(writer, storage, span.start // self.plan.shard, collector, collected)
                        collector = None
            if collector is not None:  # the last shard of a stream is not full
                self._store(writer, storage, span.start // self.plan.shard, collector, collected)

    def _take_some(
        self, collector: Collector, several: list[BatchOrBad], stop: int, collected: list[BatchWarning]
    ) -> int:
        """Run on the first of several batches, up to the sample `stop`, and remove them.

        Returns:
            The sample after the last one.
        """
        end = -1
        with turn, restored_generators():
            while several and end < stop:
                batch = several.pop(0)
                with collected_warnings(batch, collected):
                    self._take(collector, batch)
                end = first_sample(batch) + size(batch)
                del batch
        return end

    def _store(
        self,
        writer: Writer,
        storage: ShardStorage,
        number: int,
        collector: Collector,
        collected: list[BatchWarning],
    ) -> None:
        tensors, about = collector.finish()
        writer.submit(lambda: storage.add(number, tensors, {**about, "warnings": collected}))

    def _take(self, collector: Collector, batch: BatchOrBad) -> None:
        if isinstance(batch, BadSample):
            self._bad(collector, batch)
            return
        seed(batch.start)
        try:
            collector.add(batch)
        except Exception as error:
            self._failed(collector, batch, error)

    def _failed(self, collector: Collector, batch: Batch, error: Exception) -> None:
        """Find the samples of a batch on which the analysis fails.

        Raises:
            SampleError: when bad samples end the run; other errors than those of samples are passed on.
        """
        count = batch.inputs.batch
        if isinstance(error, (*WRONG_FOR_ALL, torch.OutOfMemoryError)):
            raise error
        if count == 1:
            self._bad(collector, BadSample.of(batch.start, error))
            return
        if self.on_error == "raise":
            span = f"samples {batch.start} to {batch.start + count - 1}"
            raise SampleError(f"{self.job.kind} failed on {span} of the data: {_text(error)} {HINT}") from error
        for row in range(count):
            labels = None if batch.labels is None else batch.labels[row : row + 1]
            self._take(collector, Batch(batch.start + row, batch.inputs.rows(torch.tensor([row])), labels))

    def _bad(self, collector: Collector, sample: BadSample) -> None:
        if self.on_error == "raise":
            raise SampleError(f"sample {sample.index} of the data: {sample.reason} {HINT}") from sample.cause
        collector.bad(sample)


HINT = "Finished shards are in the store, if any. Fix the data, or pass on_error='record' to note bad samples."


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
