"""Mean, spread, range and zeros of every unit over a data set, in one pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.messages import first_reasons
from layerlens.axes.follow import Followed
from layerlens.axes.followed import followed
from layerlens.errors import AxesUnknown, OptionError, RecordError, warn
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
        self.left_out: dict[str, str] = {}
        self._known: Followed | None = None

    def take(self, batch: Batch) -> None:
        """Run on a batch; the outputs of layers are read in hooks and not kept."""
        model, forward, first = self.model, self.job.forward, self._known is None
        self._known = self._known or followed(model, batch.inputs, forward)
        reader = self._read(batch)
        if not first and reader.left_out.keys() - self.left_out:  # another route, or another number of units
            self._known = followed(model, batch.inputs, forward, again=True)
            reader = self._read(batch)
        self.left_out |= reader.left_out
        for name, one in reader.found.items():
            parts = [*self.found.get(name, ()), one]
            self.found[name] = parts if len(parts) < MOST else [merged(name, parts)]

    def _read(self, batch: Batch) -> Reader:
        assert self._known is not None
        reader = Reader("read", known=self._known)
        with borrowed(self.model, grad=False), Probe(self.model, (), edits={self.job.paths: reader}):
            batch.inputs.run(self.model, self.job.forward)
        return reader

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the moments, the layers in their order, and why others are left out."""
        found = {f"moments/{name}": merged(name, parts) for name, parts in self.found.items()}
        return found, {"result": {"order": list(self.found), "left out": self.left_out}}


@dataclasses.dataclass(frozen=True)
class Reader(Change):
    """Reads the outputs of layers, and changes nothing.

    Attributes:
        known: the axes of the run.
        found: moments of each call.
        left_out: call -> why its units are not known.
    """

    function: Callable[..., torch.Tensor] = lambda tensor, site: tensor
    known: Followed = dataclasses.field(kw_only=True, repr=False)
    found: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def apply(self, output: object, site: Site) -> Any:
        """Note the moments of a call."""
        call = f"{site.path}#{site.call}" if site.call else site.path
        found = changeable(site.module, output, site.tensors, site.path)
        for name, tensor in found.items():
            values = padded(tensor)
            if values.ndim and values.numel() and not values.is_complex():
                short = tensor_path(call, name if site.tensors is not None or len(found) > 1 else "")
                try:
                    axis = self.known.site(site.path, site.call).unit_axis(values, name)
                except (AxesUnknown, RecordError) as error:
                    self.left_out[short] = str(error)
                else:
                    with torch.no_grad():
                        self.found[short] = moments(values, axis)
        return output


def moments(tensor: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Return the moments of one output, `(field, unit)` float64, over all axes but that of units; None for one unit."""
    values = (tensor.detach().unsqueeze(0) if axis is None else tensor.detach().movedim(axis, 0)).flatten(1).double()
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
    """Return the statistics of all shards, in their order.

    Raises:
        AxesUnknown: when the units of no layer are known.

    Warns:
        UserWarning: for layers whose units are not known.
    """
    found: dict[str, torch.Tensor] = {}
    left_out: dict[str, str] = {}
    samples = 0
    for shard in shards:
        left_out |= shard.about["result"].get("left out", {})
        samples += shard.shape("ids")[0]
        for name in shard.about["result"]["order"]:
            one = shard.tensor(f"moments/{name}")
            found[name] = merged(name, [found[name], one]) if name in found else one
    if left_out:
        found = {name: one for name, one in found.items() if name not in left_out}
        if not found:
            raise AxesUnknown(f"statistics: no layer can be read. {first_reasons(left_out)}")
        warn(f"statistics: {len(left_out)} layer(s) are left out. {first_reasons(left_out)}")
        settings = {**settings, "left_out": left_out}
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
