"""Shards on Ray Data: a pool of actors that grows and shrinks, on one machine or many, and survives lost workers."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from layerlens import errors
from layerlens.errors import LayerLensError, OptionError, check_count, need
from layerlens.progress import track

from ..run.work import Work
from ..store.shard_storage import Folder, Shelf


@dataclasses.dataclass(frozen=True)
class RayEngine:
    """Shards are made by a pool of Ray actors, each with a copy of the model.

    An actor that is lost is started again by Ray, and the shard it was at is made anew. Without a running cluster a
    local one is started, and stopped at the end; with one (`ray.init(address=...)`) that is used. The store must be in
    a folder that all machines reach.

    Attributes:
        actors: how many, or `(fewest, most)`; None for one per free core, or GPU where they take one.
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

    def run(self, work: Work, shards: Iterable[int], shelf: Shelf, *, progress: bool | None, total: int | None) -> None:
        """Make the shards."""
        ray = need("ray", 'engine="ray"')
        need("ray.data", 'engine="ray"', "ray")
        if work.plan.count is None:
            raise OptionError("data that comes as a stream cannot be shared among actors; give a Dataset or a tensor.")
        assert isinstance(shelf, Folder)
        listed = list(shards)
        if not listed:
            return
        stop = shelf.folder.absolute() / f".stop.{socket.gethostname()}.{os.getpid()}.tmp"
        with _cluster(ray), _quiet(ray):
            sent = ray.put(dataclasses.replace(work, prefetch=False))
            pool = self._pool(ray, len(listed))
            data = ray.data.from_items([{"shard": number} for number in listed], override_num_blocks=len(listed))
            made = data.map_batches(
                Maker,
                fn_constructor_args=(sent, str(shelf.folder.absolute()), self.num_cpus, str(stop)),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=pool[0], max_size=pool[1]),
                num_cpus=self.num_cpus,
                num_gpus=self.num_gpus,
            )
            sizes = {number: len(work.plan.span(number)) for number in listed}
            failed: list[LayerLensError] = []
            rows = (_number(row, failed) for row in made.iter_rows())
            try:  # to the end also after an error, which makes the actors skip what is left: a cluster must not be
                # shut down under a stream that runs, for that ends this process when the next one is started
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
    """What an actor does: it takes numbers of shards and puts the shards into the folder.

    Once a file `stop` is there, which an actor makes that meets an error, it skips what comes.
    """

    def __init__(self, work: Any, folder: str, threads: int, stop: str) -> None:
        import ray

        torch.set_num_threads(threads)
        self.work: Work = ray.get(work) if isinstance(work, ray.ObjectRef) else work
        self.shelf, self.stop = Folder(Path(folder)), Path(stop)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the shards that are not there; an error of layerlens is told and not raised, for Ray would bury it."""
        try:
            for number in batch["shard"].tolist():
                if not self.stop.exists() and not self.shelf.holds(number):
                    self.work.make([number], self.shelf, progress=False, total=None)
        except LayerLensError as error:
            self.stop.touch()
            return {**batch, "error": [type(error).__name__], "text": [str(error)]}
        return {**batch, "error": [""], "text": [""]}


def _number(row: dict[str, Any], failed: list[LayerLensError]) -> int:
    """The shard of a row; an error that its actor met is noted, in the class that it had."""
    if row["error"]:
        failed.append(getattr(errors, row["error"])(row["text"]))
    return int(row["shard"])


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """A cluster: the one that runs, or a local one for as long as it is needed."""
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Without the bars, reports and inner deprecations of Ray Data: there is a bar of ours."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        yield from _without_bars(ray)


def _without_bars(ray: Any) -> Iterator[None]:
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)
