"""A data set by sample number: any part of it can be read by itself, again, and in another process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from layerlens.errors import InputError
from layerlens.inputs.batches import Batch, Read, grouped, read_batch, read_sample
from layerlens.inputs.inputs import Inputs
from layerlens.model.hashing import digest
from layerlens.model.trees import named_tensors

from .bad_samples import Bad, Piece

DIGEST = "digest of the first, middle and last"
"""Of the samples; where it is the same, it does not matter what holds them."""


class Source:
    """Samples that can be read by their number.

    Args:
        one: sample number -> an item, `(x, label)` or `x`.
        whole: numbers -> an item that is a batch of them; None where samples are read one by one.
        count: how many samples there are.
        kind: what the data is, for messages and for the manifest.
        read: makes model inputs of what was read.
        workers: processes that read ahead; 0 reads in a thread of this one.
    """

    random = True
    """Whether any sample can be read without those before it."""

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
            raise InputError(f"the data ({kind}) is empty: there is no sample in it.")

    def pieces(self, spans: Iterable[range]) -> Generator[Piece, None, None]:
        """The samples of each span, in batches that do not cross it; samples of several shapes do not share one."""
        if not self.workers:
            for span in spans:
                yield from self._parsed(span, self.fetch(span))
            return
        listed = list(spans)
        for span, items in zip(listed, self._loaded(listed), strict=True):
            yield from self._parsed(span, items)

    def fetch(self, span: range) -> list[Any]:
        """The items of a span: one that is a batch, or one for each sample; a `Bad` for one that cannot be had."""
        if self.whole is not None:
            try:
                return [self.whole(span)]
            except Exception as error:
                if len(span) == 1:
                    return [Bad.of(span.start, error)]
                return [item for index in span for item in self.fetch(range(index, index + 1))]
        items: list[Any] = []
        for index in span:
            try:
                items.append(self.one(index))
            except Exception as error:
                items.append(Bad.of(index, error))
        return items

    def _loaded(self, spans: list[range]) -> Iterable[list[Any]]:
        """The same from other processes, in order."""
        own = torch.Generator()  # without it the loader draws a number from the generator of the user
        return DataLoader(_Fetcher(self), batch_size=None, sampler=spans, num_workers=self.workers, generator=own)

    def _parsed(self, span: range, items: list[Any]) -> Iterator[Piece]:
        if len(items) == 1 and self.whole is not None and not isinstance(items[0], Bad):
            yield from self._batch(span, items[0])
            return
        good: list[tuple[Inputs, tuple[int, Any]]] = []
        for index, item in zip(span, items, strict=True):
            if not isinstance(item, Bad):
                try:
                    good.append(self._single(item, index))
                    continue
                except Exception as error:
                    item = Bad.of(index, error)
            yield from _joined(good, len(span))
            good = []
            yield item
        yield from _joined(good, len(span))

    def _single(self, item: Any, index: int) -> tuple[Inputs, tuple[int, Any]]:
        if self.whole is None:
            inputs, label = read_sample(item, index, self.read)
        else:
            inputs, (label,) = read_batch(item, index, self.read)
        return inputs, (index, label)

    def _batch(self, span: range, item: Any) -> Iterator[Piece]:
        try:
            inputs, labels = read_batch(item, span.start, self.read)
            if inputs.batch != len(span):
                raise InputError(f"{inputs.batch} samples were read where {len(span)} were asked for.")
        except Exception as error:
            if len(span) == 1:
                yield Bad.of(span.start, error)
                return
            for index in span:
                yield from self._parsed(range(index, index + 1), self.fetch(range(index, index + 1)))
            return
        yield Batch(span.start, inputs, None if any(label is None for label in labels) else labels)

    def identity(self) -> dict[str, Any]:
        """What tells this data from other data: count, kind, and a digest of three samples."""
        places = sorted({0, self.count // 2, self.count - 1})
        found = [_digest(self.fetch(range(place, place + 1))) for place in places]
        joined = None if None in found else hashlib.sha256("".join(map(str, found)).encode()).hexdigest()
        return {"samples": self.count, "kind": self.kind, DIGEST: joined}


class Stream(Source):
    """Samples that come in their order only: to reach one, those before it are read as well."""

    random = False

    def __init__(self, items: Callable[[], Iterator[Any]], kind: str, read: Read) -> None:
        self.items, self.kind, self.read, self.workers = items, kind, read, 0
        self.count: Any = None
        self.whole = None

    def pieces(self, spans: Iterable[range]) -> Generator[Piece, None, None]:
        """The samples of the spans, which must be in order; ends with the stream."""
        items, at = self.items(), 0
        for span in spans:
            skipped = sum(1 for _ in islice(items, span.start - at))
            got: list[Any] = list(islice(items, len(span))) if skipped == span.start - at else []
            at = span.start + len(got)
            if got:
                yield from self._parsed(range(span.start, at), got)
            if len(got) < len(span):
                return

    def identity(self) -> dict[str, Any]:
        """What tells this data from other data."""
        return {"samples": None, "kind": self.kind, DIGEST: None}


class _Fetcher(Dataset[Any]):
    """What a worker process runs; errors come back as text, for not every exception can be sent."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, span: range) -> list[Any]:
        items = self.source.fetch(span)
        return [Bad(item.index, item.reason) if isinstance(item, Bad) else item for item in items]


def _joined(samples: list[tuple[Inputs, tuple[int, Any]]], most: int) -> Iterator[Batch]:
    for inputs, tags in grouped(samples, most):
        labels = [label for _, label in tags]
        yield Batch(tags[0][0], inputs, None if any(label is None for label in labels) else labels)


def _digest(items: list[Any]) -> str | None:
    """Of the tensors and texts of some items; None where they hold neither."""
    item = items[0]
    if isinstance(item, Bad):
        return item.reason.partition(":")[0]  # texts of errors may hold addresses, other ones in each process
    parts = [digest(named_tensors(_as_tensors(item)))]
    parts += [part for part in (item if isinstance(item, (tuple, list)) else [item]) if isinstance(part, str)]
    return "|".join(parts)


def _as_tensors(item: Any) -> Any:
    if isinstance(item, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(item)) if item.dtype.kind in "fiub" else None
    if isinstance(item, Mapping):
        return {name: _as_tensors(part) for name, part in item.items()}
    return [_as_tensors(part) for part in item] if isinstance(item, (tuple, list)) else item
