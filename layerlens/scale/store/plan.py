"""The plan of a run: which samples stand in which shard and in which batch, the same for every engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from layerlens.errors import check_count

SHARD = 256
"""Samples in a shard where nothing else is asked for."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Shard k holds the samples from k * shard on; a batch never crosses a shard, so a shard can be made by itself.

    Attributes:
        count: samples in the data; None for a stream, whose end is seen when it is reached.
        shard: samples in a shard; the last may hold fewer.
        batch: samples that run together.

    Example:
        >>> plan = Plan(10, 4, 3)
        >>> plan.shards, plan.span(2), plan.batches(1)
        (3, range(8, 10), [range(4, 7), range(7, 8)])
    """

    count: int | None
    shard: int = SHARD
    batch: int = 16

    def __post_init__(self) -> None:
        check_count("shard_size", self.shard)
        check_count("batch_size", self.batch)

    @classmethod
    def of(cls, count: int | None, shard: int | None, batch: int) -> Plan:
        """A plan whose shards hold about 256 samples where their size is not given: whole batches."""
        check_count("batch_size", batch)
        return cls(count, batch * max(1, round(SHARD / batch)) if shard is None else shard, batch)

    @property
    def shards(self) -> int | None:
        """How many shards there are; None for a stream."""
        return None if self.count is None else -(-self.count // self.shard)

    def whole(self) -> Plan:
        """The same with all samples in one shard; a stream, whose length is not known, stays as it is."""
        return self if self.count is None else dataclasses.replace(self, shard=max(self.count, self.batch))

    def numbers(self) -> Iterator[int]:
        """The shards, in order; without end for a stream."""
        number = 0
        while self.shards is None or number < self.shards:
            yield number
            number += 1

    def span(self, number: int) -> range:
        """The samples of a shard; of a stream those that it may hold."""
        start = number * self.shard
        stop = start + self.shard
        return range(start, stop if self.count is None else min(stop, self.count))

    def batches(self, number: int) -> list[range]:
        """The samples of each batch of a shard."""
        span = self.span(number)
        return [range(start, min(start + self.batch, span.stop)) for start in range(span.start, span.stop, self.batch)]
