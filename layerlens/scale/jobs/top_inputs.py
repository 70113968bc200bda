"""The samples that each unit of a layer responds to most, in a data set in shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.features.batch_targets import of_batch
from layerlens.analyzers.concepts.top_inputs import top_inputs
from layerlens.inputs.batches import Batch
from layerlens.inputs.inputs import Forward
from layerlens.results import TopInputs
from layerlens.targets.target import Target

from ..data.source import Source
from ..store.fingerprint import as_json, target_settings
from ..store.shard_storage import Shard
from .base import Collector, registered


@dataclasses.dataclass
class TopInputsJob:
    """The k samples with the largest value of each unit."""

    layer: str
    aim: Target | None
    k: int
    options: dict[str, Any]
    forward: Forward | None
    kind = "top_inputs"

    def settings(self) -> dict[str, Any]:
        """Return all options as JSON."""
        options = {name: as_json(value) for name, value in self.options.items()}
        return {"layer": self.layer, "target": target_settings(self.aim), "k": self.k, **options, **registered()}

    def collector(self, model: nn.Module, capacity: int) -> Collector:
        """Return the collector of one shard."""
        return BestSamples(self, model)

    def run(self, model: nn.Module, items: Any, target: Any, **options: Any) -> TopInputs:
        """Run `top_inputs` on some items."""
        given = {"count": self.k, "forward": self.forward, "progress": False, **self.options, **options}
        return top_inputs(model, items, self.layer, target=target, **given)


class BestSamples(Collector):
    """The largest values of one shard."""

    def __init__(self, job: TopInputsJob, model: nn.Module) -> None:
        super().__init__(model)
        self.job = job
        self.values = torch.zeros(0, 0, dtype=torch.float64)
        self.index = torch.zeros(0, 0, dtype=torch.int64)

    def take(self, batch: Batch) -> None:
        """Run on a batch."""
        target = of_batch(self.job.aim, batch)
        size = batch.inputs.batch
        found = self.job.run(self.model, [batch.inputs], target, regions=False, batched=True, batch_size=size)
        self.values, self.index = best(
            [(self.values, self.index), (found.values, found.index + batch.start)], self.job.k
        )

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the values and their samples."""
        return {"best values": self.values.contiguous(), "best index": self.index.contiguous()}, {"result": {}}


def best(parts: list[tuple[torch.Tensor, torch.Tensor]], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest values of each unit and their samples, `(unit, k)`; of equal values the earlier sample."""
    some = [part for part in parts if part[0].numel()]
    if not some:
        return parts[0]
    values, index = (torch.cat(column, dim=1) for column in zip(*some, strict=True))
    order = index.sort(dim=1, stable=True).indices
    values, index = values.gather(1, order), index.gather(1, order)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], index.gather(1, order)[:, :k]


def gather(
    shards: Iterable[Shard], job: TopInputsJob, model: nn.Module, source: Source, settings: dict[str, Any]
) -> TopInputs:
    """Return the best samples of all shards; they are read once more for their places and regions."""
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    samples = 0
    for shard in shards:
        samples += shard.shape("ids")[0]
        if "best values" in shard.names and shard.shape("best values")[0]:
            parts = [best([*parts, (shard.tensor("best values"), shard.tensor("best index"))], job.k)]
    index = parts[0][1]
    wanted = sorted(set(index.flatten().tolist()))
    read = source.batches(range(number, number + 1) for number in wanted)
    batches = [batch for batch in read if isinstance(batch, Batch)]
    found = job.run(
        model,
        [(batch.inputs, batch.labels) if batch.labels else batch.inputs for batch in batches],
        "label" if job.aim is None else job.aim.on(None, torch.tensor(wanted)),
        batched=True,
    )
    numbers = torch.tensor(wanted)
    return dataclasses.replace(
        found,
        index=numbers[found.index],
        inputs={wanted[number]: sample for number, sample in found.inputs.items()},
        count=samples,
        settings={**found.settings, **{name: settings[name] for name in ("samples",) if name in settings}},
    )
