"""Shards by rank, for processes that torchrun or SLURM started: shard k is made by rank k modulo their number."""

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
from ..store.shard_storage import Shelf

POLL = 0.2
"""Seconds between two looks at the shards of other ranks."""


@dataclasses.dataclass(frozen=True)
class TorchrunEngine:
    """Each process makes its part of the shards and waits for the others; a folder that all can reach joins them.

    No process group is needed, except for a model whose forward pass talks between the processes (FSDP2, tensor
    parallel): there all ranks run every batch together, and the first one writes.

    Attributes:
        patience: seconds to wait for the others while no new shard appears.
    """

    patience: float = 1800.0
    shared = True

    def run(self, work: Work, shards: Iterable[int], shelf: Shelf, *, progress: bool | None, total: int | None) -> None:
        """Make the shards of this rank, and wait for those of the others."""
        rank, world = place()
        if work.plan.count is None:
            raise OptionError("data that comes as a stream cannot be shared among ranks; give a Dataset or a tensor.")
        shown = progress if rank == 0 else False
        listed = list(shards)
        if talks(work.model):
            listed = _agreed(listed)
            work.make(listed, shelf if rank == 0 else Nowhere(), progress=shown, total=total)
        else:
            mine = [number for number in listed if number % world == rank]
            share = None if total is None else sum(len(work.plan.span(number)) for number in mine)
            work.make(mine, shelf, progress=shown, total=share)
        self._wait(set(listed), shelf)

    def _wait(self, wanted: set[int], shelf: Shelf) -> None:
        left, since = wanted, time.monotonic()
        while left:
            now = wanted - set(shelf.numbers())
            if len(now) < len(left):
                since = time.monotonic()
            left = now
            if left and time.monotonic() - since > self.patience:
                raise StoreError(
                    f"no new shard appeared for {self.patience:.0f} s, and {len(left)} are missing "
                    f"({', '.join(map(str, sorted(left)[:8]))}): did another rank end? Start all of them again; what "
                    "is finished is kept."
                )
            if left:
                time.sleep(POLL)


class Nowhere:
    """A shelf for ranks that run along and do not write."""

    def numbers(self) -> list[int]:
        """None."""
        return []

    def put(self, number: int, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        """Keep nothing."""

    def shard(self, number: int) -> Any:
        """There is none."""
        raise StoreError(f"shard {number} is not kept by this rank.")


def place() -> tuple[int, int]:
    """Rank and number of the processes."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), int(os.environ[world])
    raise OptionError(
        'engine="torchrun" needs RANK and WORLD_SIZE, which torchrun sets; without it use engine="local".'
    )


def talks(model: nn.Module) -> bool:
    """Whether the forward pass of a model needs all processes: its weights are spread over them."""
    return bool(sharded(model))


def _agreed(shards: list[int]) -> list[int]:
    """The list of the first rank, so that all run the same."""
    box = [shards]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
