"""Shards on Ray Data: a pool of actors that grows and shrinks, on one or many machines, and survives lost workers."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from layerlens.errors import LayerLensError, OptionError, check_count, need
from layerlens.files import owner
from layerlens.progress import track

from ..run.work import Work
from ..store.shard_storage import Folder, ShardStorage

NICENESS = "RAY_worker_niceness"
"""Variable with the niceness of the actors of a new cluster: by default 15, hardly any time if others work."""


@dataclasses.dataclass(frozen=True)
class RayEngine:
    """Makes shards in a pool of Ray actors, each with a copy of the model.

    Ray restarts a lost actor, and its shard is recomputed. A running cluster (`ray.init(address=...)`) is used; without
    one a local cluster is started, whose actors have the priority of this process, and stopped at the end. The store
    must be in a folder that all machines can reach.

    Attributes:
        actors: number of actors, or `(fewest, most)`; None for one per free core, or per GPU if they use one.
        num_cpus: cores, and torch threads, of an actor.
        num_gpus: GPUs of an actor.
    """

    actors: int | tuple[int, int] | None = None
    num_cpus: int = 1
    num_gpus: float = 0
    shared = True

    def __post_init__(self) -> None:
        for count in self.actors if isinstance(self.actors, tuple) else (self.actors,):
            if count is not None:
                check_count("actors", count)
        check_count("num_cpus", self.num_cpus)

    def run(
        self, work: Work, shards: Iterable[int], storage: ShardStorage, *, progress: bool | None, total: int | None
    ) -> None:
        """Make the shards.

        Raises:
            OptionError: when the data is a stream.
        """
        ray = need("ray", 'engine="ray"')
        need("ray.data", 'engine="ray"', "ray")
        if work.plan.count is None:
            raise OptionError("a stream cannot be shared among actors; give a Dataset or a tensor.")
        assert isinstance(storage, Folder)
        listed = list(shards)
        if not listed:
            return
        stop = storage.folder.absolute() / f".stop.{secrets.token_hex(8)}-{owner()}.tmp"
        with _cluster(ray), _quiet(ray):
            sent = ray.put(dataclasses.replace(work, prefetch=False))
            pool = self._pool(ray, len(listed))
            data = ray.data.from_items([{"shard": number} for number in listed], override_num_blocks=len(listed))
            made = data.map_batches(
                Maker,
                fn_constructor_args=(sent, str(storage.folder.absolute()), storage.run, self.num_cpus, str(stop)),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=pool[0], max_size=pool[1]),
                num_cpus=self.num_cpus,
                num_gpus=self.num_gpus,
            )
            sizes = {number: len(work.plan.span(number)) for number in listed}
            failed: list[LayerLensError] = []
            rows = (_number(row, failed) for row in made.iter_rows())
            try:  # read to the end also after an error, which makes the actors skip the rest: shutting down a cluster
                # under a running stream would end this process when the next cluster is started
                for _ in track(rows, work.job.kind, total, progress, weigh=sizes.__getitem__):
                    pass
            finally:
                stop.unlink(missing_ok=True)
            if failed:
                raise failed[0]

    def _pool(self, ray: Any, shards: int) -> tuple[int, int]:
        if isinstance(self.actors, tuple):
            return self.actors
        if self.actors is not None:
            return self.actors, self.actors
        free = ray.cluster_resources()
        most = free.get("GPU", 0) / self.num_gpus if self.num_gpus else free.get("CPU", 1) / self.num_cpus
        return 1, max(1, min(int(most), shards))


class Maker:
    """An actor: takes numbers of shards and writes the shards into the folder.

    After an error it makes the file `stop`; as soon as that exists, all actors skip the rest.
    """

    def __init__(self, work: Any, folder: str, run: str, threads: int, stop: str) -> None:
        import ray

        torch.set_num_threads(threads)
        self.work: Work = ray.get(work) if isinstance(work, ray.ObjectRef) else work
        self.storage, self.stop = Folder(Path(folder), run), Path(stop)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make missing shards; return an error of layerlens instead of raising it, because Ray would hide it."""
        try:
            for number in batch["shard"].tolist():
                if not self.stop.exists() and not self.storage.has(number):
                    self.work.make([number], self.storage, progress=False, total=None)
        except LayerLensError as error:
            self.stop.touch()
            return {**batch, "error": [type(error).__name__], "text": [str(error)]}
        return {**batch, "error": [""], "text": [""]}


def _number(row: dict[str, Any], failed: list[LayerLensError]) -> int:
    """Return the shard of a row; an error of its actor is noted with its class."""
    if row["error"]:
        failed.append(getattr(sys.modules[LayerLensError.__module__], row["error"])(row["text"]))
    return int(row["shard"])


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Use the running cluster, or a local one within the `with` block.

    Yields:
        Nothing.
    """
    if ray.is_initialized():
        yield
        return
    given = os.environ.get(NICENESS)
    os.environ[NICENESS] = given or "0"
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    finally:
        if given is None:
            del os.environ[NICENESS]
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Hide the progress bars, reports and internal deprecations of Ray Data; layerlens has its own bar.

    Yields:
        Nothing.
    """
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        yield from _without_bars(ray)


def _without_bars(ray: Any) -> Iterator[None]:
    """Hide the progress bars of Ray Data.

    Yields:
        Nothing.
    """
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)
