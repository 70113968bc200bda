"""An analysis of every sample of a data set: in bounded memory, resumable, in one or many processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_shapes import one_match
from layerlens.errors import OptionError, RecordError, choose
from layerlens.inputs.batches import Read, Samples
from layerlens.inputs.inputs import Forward, as_inputs
from layerlens.model.layers import Layers, Selection
from layerlens.probes.made_edits import Edits
from layerlens.results import TopInputs, UnitStatistics
from layerlens.signatures import public
from layerlens.targets.target import Spec, Target, as_target

from .data.as_source import as_source, batch_of
from .data.source import Source
from .engines import Engine, as_engine
from .jobs import statistics, top_inputs
from .jobs.attribution import RelevanceJob, Saliency, rows_of_tables
from .jobs.base import Job, RowsJob, check_classes, stored_type
from .jobs.capture import Capture
from .jobs.statistics import Statistics
from .jobs.top_inputs import TopInputsJob
from .run.lifecycle import begin, check_bad_samples, finish
from .run.work import OnError, Work, restored_generators
from .store.fingerprint import as_json
from .store.manifest import Manifest, plan_in
from .store.plan import Plan
from .store.store import Store


class Over:
    """A model and a data set; each method analyzes all of it. Made by `over` or `Lens.over`."""

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        plan: Plan,
        store: Path | None,
        engine: Engine,
        on_error: OnError,
        progress: bool | None,
        forward: Forward | None,
        aim: Callable[[Spec], Target | None],
        tokenizer: Callable[..., Any] | None,
        version: str | None,
    ) -> None:
        self.model, self.source, self.plan, self.store, self.engine = model, source, plan, store, engine
        self.on_error, self.progress, self.forward = on_error, progress, forward
        self.aim, self.tokenizer, self.version = aim, tokenizer, version

    @public
    def capture(
        self,
        layers: Selection = None,
        *,
        reduce: Callable[[Any], Any] | None = None,
        edits: Edits | None = None,
        dtype: torch.dtype | None = None,
    ) -> Store:
        """Store the outputs of layers, sample by sample.

        Args:
            reduce: applied to each output; only its result is stored.
            edits: as in `Probe`; their results are stored.
            dtype: type of stored floating-point numbers; None keeps the type of the model.

        Returns:
            A `Store` with a column for each call, `(samples, ...)`, with samples first for every layer.

        Raises:
            RecordError: when no layer returned a tensor for any sample.
        """
        paths = tuple(Layers(self.model).select(layers, calls=True, tensors=True).names())
        store = self._run_job(Capture(layers, reduce, edits, stored_type(dtype), paths, self.forward))
        if not store:
            raise RecordError(f"nothing was captured: no sample ran {', '.join(paths[:8])}, or they return no tensors.")
        return store

    @public
    def saliency(
        self,
        *,
        target: Spec = None,
        method: str = "auto",
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Store:
        """Store what the score of each sample depends on; see `layerlens.saliency`.

        Args:
            target: ... A list has one class per sample of the data; `"label"` is the label of each pair `(x, label)`.
            method: name of the method.
            dtype: type of the stored values; scores and checks keep theirs.
            **options: options of the method.

        Returns:
            A `Store` with the columns `values`, `score`, `checks/...`; `store.attribution([3, 8])` is an `Attribution`.
        """
        aim = self.aim(target)
        job = Saliency(aim, method, options, stored_type(dtype), self.tokenizer, self.forward)
        if method == "auto":
            with restored_generators():  # reading a sample may draw numbers
                job.rows_of_data = rows_of_tables(self.source)
        return self._run_job(job, aim)

    @public
    def relevance(self, *, target: Spec = None, dtype: torch.dtype | None = None, **options: Any) -> Store:
        """Store the relevance of every sample, and where its score went; see `layerlens.relevance`.

        Args:
            target: as in `saliency`.
            dtype: type of the stored values; scores and the ledger keep theirs.
            **options: `rules`, `layers`, `through` and `strict`.

        Returns:
            A `Store` with the columns `values`, `layers/...`, `score`, and the ledger's sums `ledger/input`,
            `ledger/additive`, `ledger/absorbed`.

        Raises:
            OptionError: when relevance of parameters is asked for.
        """
        if options.get("parameters"):
            raise OptionError("relevance of parameters is a sum over a batch, not a row of each sample: use relevance.")
        aim = self.aim(target)
        return self._run_job(
            RelevanceJob(aim, "relevance", options, stored_type(dtype), self.tokenizer, self.forward), aim
        )

    @public
    def statistics(self, layers: Selection = None) -> UnitStatistics:
        """Return mean, spread, range and zeros of every unit of the layers over all samples and places.

        A layer that returned several tensors has an entry for each, such as `"rnn/h_n"`.
        """
        selected = Layers(self.model).select(layers, tensors=True).selections()
        job = Statistics(tuple(name for names in selected for name in names), self.forward)
        store = self._run_job(job)
        return statistics.gather(store.shards, {**job.settings(), "samples": len(store.ids)})

    @public(renamed={"k": "count"})
    def top_inputs(self, layer: Selection, *, target: Spec = None, count: int = 8, **options: Any) -> TopInputs:
        """Return the samples that each unit of a layer responds to most; see `layerlens.top_inputs`.

        These samples are read once more, to see where in them the units respond.

        Args:
            layer: the layer, see `Selection`.
            target: as in `saliency`.
            count: number of samples per unit.
            **options: other options of `top_inputs`.

        Raises:
            OptionError: when the data is a stream, whose samples cannot be read again.
        """
        if not self.source.random:
            raise OptionError(f"top_inputs reads its samples again, and data ({self.source.kind}) is a stream: use "
                              "layerlens.top_inputs.")  # fmt: skip
        for name in ("batch_size", "batched", "read", "progress", "forward"):
            if name in options:
                raise OptionError(f"top_inputs over a data set has no option {name!r}; give it to over.")
        aim = self.aim(target)
        ((path, *_),) = one_match(self.model, layer, calls=False).selections()
        job = TopInputsJob(path, aim, count, options, self.forward)
        store = self._run_job(job, aim)
        return top_inputs.gather(store.shards, job, self.model, self.source, {"samples": len(store.ids)})

    def _run_job(self, job: Job, aim: Target | None = None) -> Store:
        check_classes(aim, self.source.count)
        # sums in memory need no shards: small tensors that stay between large freed ones would fragment the heap
        plan = self.plan if self.store is not None or isinstance(job, RowsJob) else self.plan.whole()
        settings = job.settings() | {name: as_json(one) for name, one in self._functions() if one is not None}
        manifest = Manifest.of(job.kind, settings, self.model, self.source.identity(), plan, self.version)
        store = begin(self.store, manifest, shared=self.engine.shared)
        check_bad_samples(store, self.on_error)
        finished = set(store.storage.numbers())
        numbers = (number for number in plan.numbers() if number not in finished)
        total = None
        if plan.count is not None:
            total = sum(len(plan.span(number)) for number in plan.numbers() if number not in finished)
        if total or plan.count is None:
            work = Work(self.model, job, self.source, plan, self.on_error)
            self.engine.run(work, numbers, store.storage, progress=self.progress, total=total)
        finish(store, self.source.kind, stream=plan.count is None)
        return store

    def _functions(self) -> list[tuple[str, Any]]:
        """Return what turns samples into inputs and calls the model, by name."""
        lens = getattr(self.source.read, "__self__", None)  # `read` of a Lens is bound to it
        if lens is None:
            return [("forward", self.forward), ("read", None if self.source.read is as_inputs else self.source.read)]
        transform = getattr(lens, "transform", None)
        return [("forward", self.forward), ("transform", getattr(transform, "given", transform))]

    def __repr__(self) -> str:
        count = "a stream" if self.plan.count is None else f"{self.plan.count:,} samples"
        where = "in memory" if self.store is None else f"store: {self.store}"
        return f"Over({type(self.model).__name__}, {count}, {self.plan.shards or '?'} shards, {self.engine!r}, {where})"


@public
def over(
    model: nn.Module,
    data: Samples,
    *,
    store: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    shard_size: int | None = None,
    engine: str | Engine = "auto",
    workers: int = 0,
    on_error: OnError = "raise",
    progress: bool | None = None,
    forward: Forward | None = None,
    read: Read = as_inputs,
    aim: Callable[[Spec], Any] = as_target,
    tokenizer: Callable[..., Any] | None = None,
    version: str | None = None,
) -> Over:
    """Run analyses over a whole data set, larger than memory if need be.

    The data is cut into shards of `shard_size` samples. A finished shard is written whole, so a run that ends by an
    error, Ctrl-C or `kill -9` and is started again with the same `store` is resumed: only the unfinished shard is
    computed twice. Random numbers of a model are seeded for each batch with the number of its first sample.

    Args:
        data: a tensor, an array or a dict of them, `(samples, ...)`; a Dataset or a sequence of samples `x` or
            `(x, label)`; a DataLoader that does not shuffle; or an iterable of samples, read from its start.
        store: a folder, made if missing; None keeps the rows in memory.
        batch_size: samples per pass; None for that of the store if it was begun, or of a DataLoader that has one, else
            16, or up to 4,096 rows of a table if the model is small.
        shard_size: samples in a shard, best a multiple of `batch_size`; None for that of the store if it was begun,
            else about 256, or eight default batches of rows of a table. Two shards are in memory.
        engine: `"local"` for this process; `"torchrun"` for the processes started by torchrun or SLURM, each its part;
            `"ray"` for actors on a Ray cluster; `"auto"` for torchrun if it started this process, else local. An engine
            object has options, such as `layerlens.scale.RayEngine(actors=4)`.
        workers: processes that read the data ahead (a DataLoader has its own number); 0 reads in a thread.
        on_error: `"raise"` ends the run at a sample that cannot be read or analyzed, with its number; `"record"` notes
            it in `store.errors` and continues. Wrong options and layers always raise.
        aim: reads a target.
        tokenizer: returns the texts of tokens.
        version: a version of your code, which a store is resumed by instead of by the source text of the functions
            that the model, the target and the options reach, and of the values that these read; needed where a
            function has no source text.

    Returns:
        An `Over`, with the methods `capture`, `saliency`, `relevance`, `statistics` and `top_inputs`.

    Raises:
        InputError: when the data is of another kind, is empty, or shuffles.
        OptionError: when an option is out of range.

    The methods raise:
        StoreError: when the store is of another run (other settings, weights or data), is damaged, or is not a store.
        SampleError: for a bad sample, new or noted in the store, with `on_error="raise"`, or when all are bad.

    Warns:
        UserWarning: when samples are bad, or an analysis warned: once at the end, with the samples; at the start when
            the run cannot be resumed, as a function has no source text and no version is given.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> found = over(net, torch.ones(100, 2), batch_size=32).capture("1")
        >>> found["1"].shape
        (100, 3)
    """
    source = as_source(data, read, workers)
    if version is not None and not isinstance(version, str):
        raise OptionError(f"version must be a text such as '1', got {version!r}.")
    choose("on_error", on_error, ("raise", "record"))
    folder = None if store is None else Path(store).absolute()  # the run may change its directory
    begun = None if folder is None else plan_in(folder)
    usual = batch_of(data, source, model) if begun is None else begun.batch
    batch = usual if batch_size is None else batch_size
    shard = begun.shard if begun is not None and shard_size is None else shard_size
    plan = Plan.of(source.count, shard, batch, usual)
    return Over(
        model, source, plan, folder, as_engine(engine), on_error, progress, forward, _aimed(aim), tokenizer, version
    )


def _aimed(aim: Callable[[Spec], Any]) -> Callable[[Spec], Target | None]:
    """Return a reader of targets that turns `"label"`, the label of each sample, into None."""

    def read(spec: Spec) -> Target | None:
        return None if isinstance(spec, str) and spec == "label" else as_target(aim(spec))

    return read
