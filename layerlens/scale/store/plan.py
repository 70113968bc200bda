"""The plan of a run: which samples are in which shard and batch, the same for every engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from layerlens.errors import OptionError, check_count

SHARD = 256
"""Samples in a shard by default."""
MOST_SHARDS = 10_000_000


@dataclasses.dataclass(frozen=True)
class Plan:
    """Shards and batches of a data set: shard k begins at sample k * shard, and each batch is within one shard.

    Attributes:
        count: samples in the data; None for a stream, whose length is unknown.
        shard: samples in a shard; the last may have fewer.
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
        if self.count is None:
            return
        check_count("the number of samples", self.count, least=0)
        least = -(-self.count // MOST_SHARDS)
        if self.shard < least:
            raise OptionError(
                f"{self.count:,} samples with shard_size={self.shard} are more than {MOST_SHARDS:,} shards; give at "
                f"least {least}."
            )

    @classmethod
    def of(cls, count: int | None, shard: int | None, batch: int, usual: int = 16) -> Plan:
        """Return a plan with shards of the given size, or by default of whole batches and about 256 samples.

        Args:
            count: samples in the data.
            shard: samples in a shard.
            batch: samples that run together.
            usual: samples that run together by default; if they are more than 16, a shard has eight such batches.
        """
        check_count("batch_size", batch)
        about = SHARD if usual <= SHARD // 16 else 8 * usual
        return cls(count, batch * max(1, round(about / batch)) if shard is None else shard, batch)

    @property
    def shards(self) -> int | None:
        """Number of shards; None for a stream."""
        return None if self.count is None else -(-self.count // self.shard)

    def whole(self) -> Plan:
        """Return the plan with all samples in one shard; a stream keeps its plan."""
        return self if self.count is None else dataclasses.replace(self, shard=max(self.count, self.batch))

    def numbers(self) -> Iterator[int]:
        """Count the shards, without end for a stream.

        Yields:
            Numbers of shards.
        """
        number = 0
        while self.shards is None or number < self.shards:
            yield number
            number += 1

    def span(self, number: int) -> range:
        """Return the samples of a shard; for a stream at most."""
        start = number * self.shard
        stop = start + self.shard
        return range(start, stop if self.count is None else min(stop, self.count))

    def batches(self, number: int) -> list[range]:
        """Return the samples of each batch of a shard."""
        span = self.span(number)
        return [range(start, min(start + self.batch, span.stop)) for start in range(span.start, span.stop, self.batch)]
