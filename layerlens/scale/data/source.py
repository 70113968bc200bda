"""A data set by sample number: any part of it can be read alone, again, and in another process."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from layerlens.errors import InputError
from layerlens.inputs.batches import Batch, Read, grouped, read_batch, read_sample
from layerlens.inputs.inputs import Inputs
from layerlens.inputs.tables import is_frame
from layerlens.inputs.transforms import is_picture
from layerlens.model.hashing import digest
from layerlens.model.trees import named_tensors

DIGEST = "digest of the first, middle and last"
"""Key of the digests of samples; if they are the same, the kind of the data set does not matter."""

UNREADABLE = "unreadable"
"""Instead of the digest of a sample that cannot be read: it may be repaired before the run is resumed."""


@dataclasses.dataclass(frozen=True)
class BadSample:
    """A sample that could not be read, or on which the analyzer failed.

    Attributes:
        index: number of the sample in the data.
        reason: class and text of the error.
        cause: the error, if it was raised in this process.
    """

    index: int
    reason: str
    cause: BaseException | None = None

    @classmethod
    def of(cls, index: int, error: BaseException) -> BadSample:
        """Return the bad sample for an error."""
        return cls(index, f"{type(error).__name__}: {error}", error)


BatchOrBad: TypeAlias = Batch | BadSample


def first_sample(batch: BatchOrBad) -> int:
    """Return the number of the first sample."""
    return batch.start if isinstance(batch, Batch) else batch.index


def size(batch: BatchOrBad) -> int:
    """Return the number of samples."""
    return batch.inputs.batch if isinstance(batch, Batch) else 1


class Source:
    """Samples that can be read by their number.

    Args:
        one: sample number -> an item, `(x, label)` or `x`.
        whole: numbers -> an item that is a batch of them; None if samples are read one by one.
        count: number of samples.
        kind: kind of the data, for messages and the manifest.
        read: turns an item into model inputs.
        workers: processes that read ahead; 0 reads in a thread of this process.
    """

    random = True
    """Whether any sample can be read without the ones before it."""

    def __init__(
        self,
        one: Callable[[Any], Any],
        whole: Callable[[range], Any] | None,
        count: int,
        kind: str,
        read: Read,
        workers: int = 0,
    ) -> None:
        self.one, self.whole, self.count, self.kind, self.read, self.workers = one, whole, count, kind, read, workers
        if not count:
            raise InputError(f"the data ({kind}) is empty: it has no samples.")

    def batches(self, spans: Iterable[range]) -> Generator[BatchOrBad, None, None]:
        """Read the samples of each span, in batches within the span; samples of several shapes are in several batches.

        Yields:
            Batches, and bad samples.
        """
        if not self.workers:
            for span in spans:
                yield from self._parsed(span, self.fetch(span))
            return
        listed = list(spans)
        for span, items in zip(listed, self._loaded(listed), strict=True):
            yield from self._parsed(span, items)

    def first(self) -> BatchOrBad:
        """Read the first sample."""
        return next(self._parsed(range(1), self.fetch(range(1))))

    def fetch(self, span: range) -> list[Any]:
        """Return the items of a span: a batch, or one item for each sample, a `BadSample` after a read error."""
        if self.whole is not None:
            try:
                return [self.whole(span)]
            except Exception as error:
                if len(span) == 1:
                    return [BadSample.of(span.start, error)]
                return [item for index in span for item in self.fetch(range(index, index + 1))]
        items: list[Any] = []
        for index in span:
            try:
                items.append(self.one(index))
            except Exception as error:
                items.append(BadSample.of(index, error))
        return items

    def spread(self, most: int = 100) -> Generator[Batch, None, None]:
        """Read samples evenly spread over the data, at most so many; those that cannot be read are left out.

        Yields:
            Batches of one sample; none of a stream.
        """
        count = min(most, self.count) if self.random else 0
        for number in dict.fromkeys(
            np.linspace(0, self.count - 1, count).round().astype(int).tolist() if count else []
        ):
            span = range(number, number + 1)
            yield from (one for one in self._parsed(span, self.fetch(span)) if isinstance(one, Batch))

    def _loaded(self, spans: list[range]) -> Iterable[list[Any]]:
        """Read the items of spans in other processes, in order."""
        own = torch.Generator()  # without it the loader draws from the generator of the user
        return DataLoader(_Fetcher(self), batch_size=None, sampler=spans, num_workers=self.workers, generator=own)

    def _parsed(self, span: range, items: list[Any]) -> Iterator[BatchOrBad]:
        if len(items) == 1 and self.whole is not None and not isinstance(items[0], BadSample):
            yield from self._batch(span, items[0])
            return
        good: list[tuple[Inputs, tuple[int, Any]]] = []
        for index, item in zip(span, items, strict=True):
            if not isinstance(item, BadSample):
                try:
                    good.append(self._single(item, index))
                    continue
                except Exception as error:
                    item = BadSample.of(index, error)
            yield from _joined(good, len(span))
            good = []
            yield item
        yield from _joined(good, len(span))

    def _single(self, item: object, index: int) -> tuple[Inputs, tuple[int, Any]]:
        if self.whole is None:
            inputs, label = read_sample(item, index, self.read)
        else:
            inputs, (label,) = read_batch(item, index, self.read)
        return inputs, (index, label)

    def _batch(self, span: range, item: object) -> Iterator[BatchOrBad]:
        try:
            inputs, labels = read_batch(item, span.start, self.read)
            if inputs.batch != len(span):
                raise InputError(f"{inputs.batch} samples were read instead of {len(span)}.")
        except Exception as error:
            if len(span) == 1:
                yield BadSample.of(span.start, error)
                return
            for index in span:
                yield from self._parsed(range(index, index + 1), self.fetch(range(index, index + 1)))
            return
        yield Batch(span.start, inputs, None if any(label is None for label in labels) else labels)

    def identity(self) -> dict[str, Any]:
        """Return what identifies the data: count, kind, and a digest of three samples."""
        numbers = sorted({0, self.count // 2, self.count - 1})
        found = [_digest(self.fetch(range(number, number + 1))) for number in numbers]
        return {"samples": self.count, "kind": self.kind, DIGEST: " ".join(found)}


class Stream(Source):
    """Samples that can only be read in order."""

    random = False

    def __init__(self, items: Callable[[], Iterator[Any]], kind: str, read: Read) -> None:
        self.items, self.kind, self.read, self.workers = items, kind, read, 0
        self.count: Any = None
        self.whole = None

    def batches(self, spans: Iterable[range]) -> Generator[BatchOrBad, None, None]:
        """Read the samples of the spans, which must be in order, to the end of the stream.

        Yields:
            Batches, and bad samples.
        """
        items, position = self.items(), 0
        for span in spans:
            skipped = sum(1 for _ in itertools.islice(items, span.start - position))
            got: list[Any] = list(itertools.islice(items, len(span))) if skipped == span.start - position else []
            position = span.start + len(got)
            if got:
                yield from self._parsed(range(span.start, position), got)
            if len(got) < len(span):
                return

    def identity(self) -> dict[str, Any]:
        """Return what identifies the data."""
        return {"samples": None, "kind": self.kind, DIGEST: None}


class _Fetcher(Dataset[Any]):
    """Reads items in a worker process; errors are sent as text, because not every exception can be pickled."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, span: range) -> list[Any]:
        items = self.source.fetch(span)
        return [BadSample(item.index, item.reason) if isinstance(item, BadSample) else item for item in items]


def _joined(samples: list[tuple[Inputs, tuple[int, Any]]], most: int) -> Iterator[Batch]:
    for inputs, tags in grouped(samples, most):
        labels = [label for _, label in tags]
        yield Batch(tags[0][0], inputs, None if any(label is None for label in labels) else labels)


def same_samples(one: object, other: object) -> bool:
    """Whether two texts of digests are of the same samples, as far as both can be read; one can at least."""
    pairs = list(itertools.zip_longest(str(one or "").split(), str(other or "").split()))
    return any(a == b != UNREADABLE for a, b in pairs) and all(a == b or UNREADABLE in (a, b) for a, b in pairs)


def _digest(items: list[Any]) -> str:
    """Return the digest of the tensors and texts of an item."""
    item = items[0]
    if isinstance(item, BadSample):
        return UNREADABLE
    parts = [digest(named_tensors(_as_tensors(item)))]
    parts += [part for part in (item if isinstance(item, (tuple, list)) else [item]) if isinstance(part, str)]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def _as_tensors(item: object) -> Any:
    if is_picture(item) or is_frame(item):
        item = np.asarray(item)
    if isinstance(item, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(item)) if item.dtype.kind in "fiub" else None
    if isinstance(item, Mapping):
        return {name: _as_tensors(part) for name, part in item.items()}
    return [_as_tensors(part) for part in item] if isinstance(item, (tuple, list)) else item
