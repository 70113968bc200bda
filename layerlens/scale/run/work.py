"""Make shards: read batches, run the analysis on each, keep what it gives, put whole shards on the shelf."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import warnings
from collections.abc import Generator, Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import nn

from layerlens.errors import LayerNotFound, MissingPackage, OptionError, SampleError, SelectionError, StoreError
from layerlens.inputs.batches import Batch
from layerlens.model.borrowed import generator_states, restore_generators
from layerlens.progress import track

from ..data.background import Writer, ahead
from ..data.bad_samples import Bad, Piece, size, start_of
from ..data.source import Source
from ..jobs.base import Collector, Job
from ..store.plan import Plan
from ..store.shard_storage import Shelf

OnError = Literal["raise", "record"]
WRONG_FOR_ALL = (OptionError, LayerNotFound, SelectionError, MissingPackage, StoreError, MemoryError)
"""Errors that speak of how the analysis was asked for, not of a sample: they always end the run."""


Told = tuple[int, int, str]
"""First sample of a batch, the one after its last, and a warning that the analysis gave for it."""


@contextlib.contextmanager
def noted(piece: Piece, told: list[Told]) -> Iterator[None]:
    """Note the warnings of a batch with its place in the data, which the analysis does not know."""
    start = start_of(piece)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    told += {(start, start + size(piece), str(one.message)): None for one in caught}


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Give the random generators back as they were."""
    before = generator_states()
    try:
        yield
    finally:
        restore_generators(before)


def seed(number: int) -> None:
    """Seed the random generators, those of the GPUs where they are in use."""
    torch.default_generator.manual_seed(number)  # torch.manual_seed takes 3 ms where no GPU has been asked yet
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(number)
    np.random.seed(number % 2**32)
    random.seed(number)


@dataclasses.dataclass
class Work:
    """All that a process needs to make shards, whichever engine sends it there.

    Attributes:
        model: any module.
        job: what is done with each sample.
        source: the data.
        plan: which samples stand in which shard.
        on_error: whether a bad sample ends the run or is noted.
        prefetch: whether batches are read in a thread while the model runs.
    """

    model: nn.Module
    job: Job
    source: Source
    plan: Plan
    on_error: OnError = "raise"
    prefetch: bool = True

    def make(self, shards: Iterable[int], shelf: Shelf, *, progress: bool | None, total: int | None) -> None:
        """Make shards and put them on the shelf, in their order.

        A model that draws random numbers draws them from a seed for each batch, the number of its first sample: others
        for other batches, and the same when the run goes on or another engine makes the shard.

        Raises:
            SampleError: for a bad sample, unless they are to be noted.
        """
        spans = (span for number in shards for span in self.plan.batches(number))
        pieces: Generator[Piece, None, None] = self.source.pieces(spans)
        number = -1
        collector: Collector | None = None
        told: list[Told] = []
        with (
            kept_generators(),
            Writer() as writer,
            contextlib.closing(ahead(pieces) if self.prefetch else pieces) as reading,
        ):
            for piece in track(reading, self.job.kind, total, progress, weigh=size):
                if collector is None:
                    number, told = start_of(piece) // self.plan.shard, []
                    collector = self.job.collector(self.model, len(self.plan.span(number)))
                with noted(piece, told):
                    self._take(collector, piece)
                if start_of(piece) + size(piece) == self.plan.span(number).stop:
                    self._put(writer, shelf, number, collector, told)
                    collector = None
                del piece
            if collector is not None:  # of a stream, whose last shard is not full
                self._put(writer, shelf, number, collector, told)

    def _put(self, writer: Writer, shelf: Shelf, number: int, collector: Collector, told: list[Told]) -> None:
        tensors, about = collector.finish()
        writer.submit(lambda: shelf.put(number, tensors, {**about, "warnings": told}))

    def _take(self, collector: Collector, piece: Piece) -> None:
        if isinstance(piece, Bad):
            self._bad(collector, piece)
            return
        seed(piece.start)
        try:
            collector.add(piece)
        except Exception as error:
            self._failed(collector, piece, error)

    def _failed(self, collector: Collector, batch: Batch, error: Exception) -> None:
        """Find the samples of a batch on which the analysis fails."""
        count = batch.inputs.batch
        if isinstance(error, (*WRONG_FOR_ALL, torch.OutOfMemoryError)):
            raise error
        if count == 1:
            self._bad(collector, Bad.of(batch.start, error))
            return
        if self.on_error == "raise":
            span = f"samples {batch.start} to {batch.start + count - 1}"
            raise SampleError(f"{self.job.kind} failed on {span} of the data: {_told(error)} {HINT}") from error
        for row in range(count):
            labels = None if batch.labels is None else batch.labels[row : row + 1]
            self._take(collector, Batch(batch.start + row, batch.inputs.rows(torch.tensor([row])), labels))

    def _bad(self, collector: Collector, piece: Bad) -> None:
        if self.on_error == "raise":
            raise SampleError(f"sample {piece.index} of the data: {piece.reason} {HINT}") from piece.cause
        collector.bad(piece)


HINT = "What is finished stands in the store, if any. Mend the data, or pass on_error='record' to note such samples."


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
