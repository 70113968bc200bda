"""What an engine does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..run.work import Work
from ..store.shard_storage import Shelf


class Engine(Protocol):
    """Makes shards, each whole; one that fails or is killed leaves those that are finished."""

    shared: bool
    """Whether several processes take part, which need a store in files."""

    def run(self, work: Work, shards: Iterable[int], shelf: Shelf, *, progress: bool | None, total: int | None) -> None:
        """Make the shards, of `total` samples, and return when all are on the shelf.

        Raises:
            SampleError: for a bad sample, unless they are to be noted.
        """
        ...
