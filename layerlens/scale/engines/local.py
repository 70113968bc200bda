"""What an engine does, and the simplest one: this process makes every shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Protocol

from ..run.work import Work
from ..store.shard_storage import ShardStorage


class Engine(Protocol):
    """Makes shards one by one; if it fails or is killed, finished shards are kept."""

    shared: bool
    """Whether several processes take part, which need a store in files."""

    def run(
        self, work: Work, shards: Iterable[int], storage: ShardStorage, *, progress: bool | None, total: int | None
    ) -> None:
        """Make the shards, of `total` samples, and return when all are stored.

        Raises:
            SampleError: for a bad sample, unless bad samples are noted.
        """
        ...


@dataclasses.dataclass(frozen=True)
class LocalEngine:
    """Makes every shard in this process, one after the other."""

    shared = False

    def run(
        self, work: Work, shards: Iterable[int], storage: ShardStorage, *, progress: bool | None, total: int | None
    ) -> None:
        """Make the shards."""
        work.make(shards, storage, progress=progress, total=total)
