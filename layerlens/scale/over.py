"""An analysis of every sample of a data set: in bounded memory, resumable, in one process or many."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerlens.errors import OptionError, RecordError, choose
from layerlens.inputs.batches import Read
from layerlens.inputs.inputs import as_inputs
from layerlens.model.layers import Layers, Selection
from layerlens.probes.probe import Edits
from layerlens.results import TopInputs, UnitStatistics
from layerlens.signatures import public
from layerlens.targets.target import Spec, Target, as_target

from .data.as_source import as_source, batch_of
from .data.source import Source
from .engines import Engine, as_engine
from .jobs import statistics, top_inputs
from .jobs.attribution import RelevanceJob, Saliency
from .jobs.base import Job, RowsJob, check_classes, stored_type
from .jobs.capture import Capture
from .jobs.statistics import Statistics
from .jobs.top_inputs import TopInputsJob
from .run.lifecycle import begin, check_noted, finish
from .run.work import OnError, Work
from .store.fingerprint import plain
from .store.manifest import Manifest
from .store.plan import Plan
from .store.store import Store


class Over:
    """A model and a data set; each method runs an analysis over all of it. Made by `over` or `Lens.over`."""

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        plan: Plan,
        store: Path | None,
        engine: Engine,
        on_error: OnError,
        progress: bool | None,
        forward: Callable[..., Any] | None,
        aim: Callable[[Spec], Target | None],
        tokenizer: Any,
    ) -> None:
        self.model, self.source, self.plan, self.store, self.engine = model, source, plan, store, engine
        self.on_error, self.progress, self.forward = on_error, progress, forward
        self.aim, self.tokenizer = aim, tokenizer

    def capture(
        self,
        layers: Selection = None,
        *,
        reduce: Callable[[Any], Any] | None = None,
        edits: Edits | None = None,
        dtype: torch.dtype | None = None,
    ) -> Store:
        """What the layers return, sample by sample.

        Args:
            layers: see `Selection`; None for every layer.
            reduce: applied to each output; only what it returns is kept.
            edits: as in `Probe`; what they return is stored.
            dtype: of stored floating-point numbers; None keeps that of the model.

        Returns:
            A `Store` with a column for each call, `(samples, ...)`; samples first, whichever axis the
            layer has them on.

        Raises:
            RecordError: when no layer gave a tensor for any sample.
        """
        paths = tuple(Layers(self.model).select(layers))
        store = self._stored(Capture(layers, reduce, edits, stored_type(dtype), paths, self.forward))
        if not store:
            raise RecordError(f"nothing was captured: no sample ran {', '.join(paths[:8])}, or they return no tensors.")
        return store

    def saliency(
        self,
        *,
        target: Spec = None,
        method: str = "integrated_gradients",
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Store:
        """What the score of each sample depends on; see `layerlens.saliency`.

        Args:
            target: as there, with one class per sample of the data where it is a list; `"label"` is that of each pair
                `(x, label)`.
            method: its name.
            dtype: of the stored values; scores and checks keep theirs.
            **options: of the method.

        Returns:
            A `Store` with the columns `values`, `score`, `checks/...`; `store.attribution([3, 8])` is an `Attribution`.
        """
        aim = self.aim(target)
        return self._stored(Saliency(aim, method, options, stored_type(dtype), self.tokenizer, self.forward), aim)

    def relevance(self, *, target: Spec = None, dtype: torch.dtype | None = None, **options: Any) -> Store:
        """Relevance of every sample, and where its score went; see `layerlens.relevance`.

        Args:
            target: as in `saliency`.
            dtype: of the stored values; scores and the ledger keep theirs.
            **options: `rules`, `layers`, `through` and `strict`.

        Returns:
            A `Store` with the columns `values`, `layers/...`, `score`, and the ledger's sums `ledger/input`,
            `ledger/additive`, `ledger/absorbed`.
        """
        if options.get("parameters"):
            raise OptionError("relevance of parameters is a sum over a batch, not a row of each sample: use relevance.")
        aim = self.aim(target)
        return self._stored(
            RelevanceJob(aim, "relevance", options, stored_type(dtype), self.tokenizer, self.forward), aim
        )

    def statistics(self, layers: Selection = None) -> UnitStatistics:
        """Mean, spread, range and zeros of every unit of the layers over all samples and places.

        Args:
            layers: see `Selection`; None for every layer.
        """
        job = Statistics(tuple(Layers(self.model).select(layers)), self.forward)
        store = self._stored(job)
        return statistics.gathered(store.shards, {**job.settings(), "samples": len(store.ids)})

    @public(renamed={"k": "count"})
    def top_inputs(self, layer: Selection, *, target: Spec = None, count: int = 8, **options: Any) -> TopInputs:
        """The samples that each unit of a layer responds to most; see `layerlens.top_inputs`.

        The samples found are read from the data once more, for where the units look in them.

        Raises:
            OptionError: when the data is a stream, which cannot be read again at some places.
        """
        if not self.source.random:
            raise OptionError(f"top_inputs reads its samples again, and data ({self.source.kind}) is a stream: use "
                              "layerlens.top_inputs.")  # fmt: skip
        for name in ("batch_size", "batched", "read", "progress", "forward"):
            if name in options:
                raise OptionError(f"top_inputs over a data set has no option {name!r}; give it to over.")
        aim = self.aim(target)
        path = str(Layers(self.model).select(layer)[0])
        job = TopInputsJob(path, aim, count, options, self.forward)
        store = self._stored(job, aim)
        return top_inputs.gathered(store.shards, job, self.model, self.source, {"samples": len(store.ids)})

    def _stored(self, job: Job, aim: Target | None = None) -> Store:
        check_classes(aim, self.source.count)
        # sums in memory need no shards: many small tensors that stay, between large ones that go, hold the heap apart
        plan = self.plan if self.store is not None or isinstance(job, RowsJob) else self.plan.whole()
        settings = job.settings() if self.forward is None else {**job.settings(), "forward": plain(self.forward)}
        manifest = Manifest.of(job.kind, settings, self.model, self.source.identity(), plan)
        store = begin(self.store, manifest, shared=self.engine.shared)
        check_noted(store, self.on_error)
        there = set(store.shelf.numbers())
        numbers = (number for number in plan.numbers() if number not in there)
        total = None
        if plan.count is not None:
            total = sum(len(plan.span(number)) for number in plan.numbers() if number not in there)
        if total or plan.count is None:
            work = Work(self.model, job, self.source, plan, self.on_error)
            self.engine.run(work, numbers, store.shelf, progress=self.progress, total=total)
        finish(store, self.source.kind, stream=plan.count is None)
        return store

    def __repr__(self) -> str:
        count = "a stream" if self.plan.count is None else f"{self.plan.count:,} samples"
        where = "in memory" if self.store is None else f"store: {self.store}"
        return f"Over({type(self.model).__name__}, {count}, {self.plan.shards or '?'} shards, {self.engine!r}, {where})"


def over(
    model: nn.Module,
    data: Any,
    *,
    store: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    shard_size: int | None = None,
    engine: Any = "auto",
    workers: int = 0,
    on_error: OnError = "raise",
    progress: bool | None = None,
    forward: Callable[..., Any] | None = None,
    read: Read = as_inputs,
    aim: Callable[[Spec], Any] = as_target,
    tokenizer: Any = None,
) -> Over:
    """Run analyses over a whole data set, larger than memory if need be.

    The data is cut into shards of `shard_size` samples. A shard is written in one step when it is finished, so a run
    that ends by an error, Ctrl-C or `kill -9` and is started again with the same `store` goes on where it was: nothing
    is lost, and nothing is done twice but the shard it was at. A store holds the rows of each sample with its number.
    A model that draws random numbers draws them from a seed for each batch, the number of its first sample.

    Args:
        model: any module.
        data: a tensor, an array or a dict of them, `(samples, ...)`; a Dataset or a sequence of samples `x` or
            `(x, label)`; a DataLoader that does not shuffle; or an iterable of samples, which is read from its start.
        store: a folder, made when missing; None keeps the rows in memory.
        batch_size: samples that run together; None for the number of a DataLoader that has one, else 16.
        shard_size: samples in a shard, a multiple of `batch_size` at best; None for about 256. Memory holds two shards.
        engine: `"local"`: this process. `"torchrun"`: the processes that torchrun or SLURM started, each its part.
            `"ray"`: actors on a Ray cluster. `"auto"`: torchrun where it started this process, else local. An engine
            object carries options, such as `layerlens.scale.RayEngine(actors=4)`.
        workers: processes that read the data ahead (a DataLoader brings its own number); 0 reads in a thread.
        on_error: `"raise"` ends the run at a sample that cannot be read or that the analyzer fails on, with its number;
            `"record"` notes it in `store.errors` and goes on. Wrong options and layers always raise.
        progress: whether to show a bar with samples per second and the time left; None shows it in a terminal.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.
        read: makes model inputs of a batch, or of one text.
        aim: reads a target.
        tokenizer: gives the texts of tokens.

    Returns:
        An `Over`, with the methods `capture`, `saliency`, `relevance`, `statistics` and `top_inputs`.

    Raises:
        InputError: when the data is of no such kind, is empty, or shuffles.
        OptionError: when an option is out of range.

    The methods raise:
        StoreError: when the store holds another run (other settings, weights or data), is damaged, or is no store.
        SampleError: for a bad sample, or one that the store notes, with `on_error="raise"`, or when all are bad.

    Warns:
        UserWarning: when samples were noted as bad, or an analysis warned: once at the end, with the place in the data.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> found = over(net, torch.ones(100, 2), batch_size=32).capture("1")
        >>> found["1"].shape
        (100, 3)
    """
    source = as_source(data, read, workers)
    plan = Plan.of(source.count, shard_size, batch_of(data) if batch_size is None else batch_size)
    choose("on_error", on_error, ("raise", "record"))
    folder = None if store is None else Path(store).absolute()  # the run may change its directory
    return Over(model, source, plan, folder, as_engine(engine), on_error, progress, forward, _aimed(aim), tokenizer)


def _aimed(aim: Callable[[Spec], Any]) -> Callable[[Spec], Target | None]:
    """A reader of targets for which `"label"` is the label of each sample: None."""

    def read(spec: Spec) -> Target | None:
        return None if isinstance(spec, str) and spec == "label" else as_target(aim(spec))

    return read
