"""Shards by rank, for processes started by torchrun or SLURM: rank r of n makes the shards k with k mod n = r."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from layerlens.errors import OptionError, StoreError
from layerlens.model.placement import sharded

from ..run.work import Work
from ..store.shard_storage import ShardStorage

POLL = 0.2
"""Seconds between two checks for shards of other ranks."""


@dataclasses.dataclass(frozen=True)
class TorchrunEngine:
    """Makes in each process its part of the shards, in a folder that all can reach, and waits for the others.

    No process group is needed, except for a model whose forward pass communicates between the processes (FSDP2, tensor
    parallel): there all ranks run every batch together, and the first one writes.

    Attributes:
        patience: seconds to wait for the others while no new shard appears.
    """

    patience: float = 1800.0
    shared = True

    def run(
        self, work: Work, shards: Iterable[int], storage: ShardStorage, *, progress: bool | None, total: int | None
    ) -> None:
        """Make the shards of this rank, and wait for those of the others.

        Raises:
            OptionError: when the data is a stream.
        """
        rank, world = rank_and_world_size()
        if work.plan.count is None:
            raise OptionError("a stream cannot be shared among ranks; give a Dataset or a tensor.")
        shown = progress if rank == 0 else False
        listed = list(shards)
        if needs_all_processes(work.model):
            listed = _broadcast_from_first_rank(listed)
            work.make(listed, storage if rank == 0 else NoStorage(), progress=shown, total=total)
        else:
            mine = [number for number in listed if number % world == rank]
            share = None if total is None else sum(len(work.plan.span(number)) for number in mine)
            work.make(mine, storage, progress=shown, total=share)
        self._wait(set(listed), storage)

    def _wait(self, wanted: set[int], storage: ShardStorage) -> None:
        """Wait until all shards are stored.

        Raises:
            StoreError: when no new shard appears for `patience` seconds.
        """
        left, since = wanted, time.monotonic()
        while left:
            now = wanted - set(storage.numbers())
            if len(now) < len(left):
                since = time.monotonic()
            left = now
            if left and time.monotonic() - since > self.patience:
                raise StoreError(
                    f"no new shard appeared for {self.patience:.0f} s, and {len(left)} are missing "
                    f"({', '.join(map(str, sorted(left)[:8]))}): did another rank end? Start all of them again; "
                    "finished shards are kept."
                )
            if left:
                time.sleep(POLL)


class NoStorage:
    """The storage of ranks that take part but do not write."""

    def numbers(self) -> list[int]:
        """Return no shards."""
        return []

    def add(self, number: int, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        """Store nothing."""

    def shard(self, number: int) -> Any:
        """Refuse to return a shard.

        Raises:
            StoreError: always.
        """
        raise StoreError(f"shard {number} is not stored by this rank.")


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes.

    Raises:
        OptionError: when they are unknown.
    """
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), int(os.environ[world])
    raise OptionError(
        'engine="torchrun" needs RANK and WORLD_SIZE, which torchrun sets; without it use engine="local".'
    )


def needs_all_processes(model: nn.Module) -> bool:
    """Return whether the forward pass of a model needs all processes, because its weights are sharded."""
    return bool(sharded(model))


def _broadcast_from_first_rank(shards: list[int]) -> list[int]:
    """Return the first rank's list of shards on every rank, so that all run the same ones."""
    boxed = [shards]
    torch.distributed.broadcast_object_list(boxed, src=0)
    return boxed[0]
