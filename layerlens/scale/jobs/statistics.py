"""Mean, spread, range and zeros of every unit over a data set, in one pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.axes.names import unit_axis
from layerlens.errors import OptionError
from layerlens.inputs.batches import Batch
from layerlens.inputs.inputs import Forward
from layerlens.model.borrowed import borrowed
from layerlens.model.tensors import changeable, tensor_path
from layerlens.model.trees import padded
from layerlens.probes.edit_site import Site
from layerlens.probes.edits import Change
from layerlens.probes.probe import Probe
from layerlens.results import UnitStatistics

from ..store.shard_storage import Shard
from .base import Collector

FIELDS = ("count", "mean", "spread", "low", "high", "zeros", "not finite")
"""Stored for each unit: number of finite values, their mean, their sum of squared differences from it, ..."""

MOST = 64
"""Batches whose moments are joined together; joining many at once is much faster."""


@dataclasses.dataclass
class Statistics:
    """Moments of each unit of layers."""

    paths: tuple[str, ...]
    forward: Forward | None
    kind = "statistics"

    def settings(self) -> dict[str, Any]:
        """Return all options as JSON."""
        return {"layers": list(self.paths)}

    def collector(self, model: nn.Module, capacity: int) -> Collector:
        """Return the collector of one shard."""
        return Moments(self, model)


class Moments(Collector):
    """The moments of one shard, `(field, unit)` float64 by call of a layer."""

    def __init__(self, job: Statistics, model: nn.Module) -> None:
        super().__init__(model)
        self.job = job
        self.found: dict[str, list[torch.Tensor]] = {}

    def take(self, batch: Batch) -> None:
        """Run on a batch; the outputs of layers are read in hooks and not kept."""
        reader = Reader("read")
        with borrowed(self.model, grad=False), Probe(self.model, (), edits={self.job.paths: reader}):
            batch.inputs.run(self.model, self.job.forward)
        for name, one in reader.found.items():
            parts = [*self.found.get(name, ()), one]
            self.found[name] = parts if len(parts) < MOST else [merged(name, parts)]

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the moments, and the layers in their order."""
        found = {f"moments/{name}": merged(name, parts) for name, parts in self.found.items()}
        return found, {"result": {"order": list(self.found)}}


@dataclasses.dataclass(frozen=True)
class Reader(Change):
    """Reads the outputs of layers, and changes nothing.

    Attributes:
        found: moments of each call.
    """

    function: Callable[..., torch.Tensor] = lambda tensor, site: tensor
    found: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def apply(self, output: object, site: Site) -> Any:
        """Note the moments of a call."""
        call = f"{site.path}#{site.call}" if site.call else site.path
        found = changeable(site.module, output, site.tensors, site.path)
        for name, tensor in found.items():
            values = padded(tensor)
            if values.ndim and values.numel() and not values.is_complex():
                with torch.no_grad():
                    short = name if site.tensors is not None or len(found) > 1 else ""
                    self.found[tensor_path(call, short)] = moments(values, unit_axis(site.module, values, short))
        return output


def moments(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the moments of one output, `(field, unit)` float64, over all axes but the unit axis."""
    values = tensor.detach().movedim(axis, 0).reshape(tensor.shape[axis], -1).double()
    variance, mean = torch.var_mean(values, dim=1, correction=0)
    if bool(mean.isfinite().all()):  # then every value is
        count, spread = torch.full_like(mean, values.shape[1]), variance * values.shape[1]
        low, high = torch.aminmax(values, dim=1)
    else:
        finite = values.isfinite()
        count = finite.sum(dim=1).double()
        mean = values.where(finite, 0.0).sum(dim=1) / count.clamp_min(1)
        spread = (values - mean[:, None]).where(finite, 0.0).square().sum(dim=1)
        low = values.where(finite, torch.inf).amin(dim=1)
        high = values.where(finite, -torch.inf).amax(dim=1)
    zeros = values.shape[1] - torch.count_nonzero(values, dim=1).double()
    return torch.stack([count, mean, spread, low, high, zeros, values.shape[1] - count]).cpu()


def merged(name: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the moments of all parts together (Chan, Golub & LeVeque 1983, eq. 2.1, for several parts).

    Raises:
        OptionError: when the numbers of units differ.
    """
    if different := [part for part in parts if part.shape != parts[0].shape]:
        raise OptionError(
            f"layer {name!r} has {parts[0].shape[1]} units for some samples and {different[0].shape[1]} for others, so "
            "it has no statistics over all; choose the layers: statistics([...])."
        )
    if len(parts) == 1:
        return parts[0]
    counts, means, spreads, lows, highs, zeros, odd = torch.stack(list(parts), dim=1)
    count = counts.sum(dim=0)
    mean = (counts * means).sum(dim=0) / count.clamp_min(1)
    spread = (spreads + counts * (means - mean).square()).sum(dim=0)
    return torch.stack([count, mean, spread, lows.amin(dim=0), highs.amax(dim=0), zeros.sum(dim=0), odd.sum(dim=0)])


def gather(shards: Iterable[Shard], settings: dict[str, Any]) -> UnitStatistics:
    """Return the statistics of all shards, in their order."""
    found: dict[str, torch.Tensor] = {}
    samples = 0
    for shard in shards:
        samples += shard.shape("ids")[0]
        for name in shard.about["result"]["order"]:
            one = shard.tensor(f"moments/{name}")
            found[name] = merged(name, [found[name], one]) if name in found else one
    columns: dict[str, dict[str, torch.Tensor]] = {name: {} for name in ("mean", "std", "low", "high", "zeros")}
    odd = {}
    for name, (count, mean, spread, low, high, zeros, other) in found.items():
        some = count > 0
        nan = torch.full_like(mean, torch.nan)
        whole = (count + other).clamp_min(1)
        numbers = (mean, (spread / count.clamp_min(1)).sqrt(), low, high, zeros / whole)
        for column, values in zip(columns.values(), numbers, strict=True):
            column[name] = values if values is numbers[-1] else values.where(some, nan)
        odd[name] = other
    return UnitStatistics(**columns, not_finite=odd, samples=samples, settings=settings)
