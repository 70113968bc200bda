"""The plain loop: this process makes every shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ..run.work import Work
from ..store.shard_storage import Shelf


@dataclasses.dataclass(frozen=True)
class LocalEngine:
    """Every shard is made by this process, one after the other."""

    shared = False

    def run(self, work: Work, shards: Iterable[int], shelf: Shelf, *, progress: bool | None, total: int | None) -> None:
        """Make the shards."""
        work.make(shards, shelf, progress=progress, total=total)
