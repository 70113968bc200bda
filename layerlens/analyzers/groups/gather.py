"""What is compared between groups: for each sample the mean activation of every unit, and the shares of its map."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.features.batch_targets import check_length, class_lists, of_batch
from layerlens.analyzers.common.features.layer_features import FeatureReader, Features
from layerlens.analyzers.saliency.saliency import saliency
from layerlens.axes.names import Axes
from layerlens.errors import InputError, TargetError
from layerlens.inputs.batches import Batch, batches
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.model.placement import home
from layerlens.results import Attribution
from layerlens.targets.outputs import class_scores
from layerlens.targets.target import Target

CELLS = {2: 16, 3: 8}
"""Cells along each axis of a map with so many axes of places; other maps keep their places."""


@dataclasses.dataclass
class Gathered:
    """Numbers of every sample of a data set.

    Attributes:
        layers: call of a layer -> `(samples, units)`.
        left_out: call of a layer -> why it has none.
        maps: input -> shares `(samples, *places)`.
        axes: input -> names of the places' axes.
        labels: of the samples, where the data has them.
        predicted: the class of each sample, where it was asked for.
        target: what was attributed.
        how: the method of attribution.
        count: how many samples there were.
    """

    layers: dict[str, torch.Tensor]
    left_out: dict[str, str]
    maps: dict[str, torch.Tensor]
    axes: dict[str, Axes]
    labels: list[Any] | None
    predicted: torch.Tensor | None
    target: str
    how: str
    count: int


@dataclasses.dataclass(frozen=True)
class Gatherer:
    """Reads a data set batch by batch; arguments as in `compare_groups`."""

    model: nn.Module
    layers: Selection
    method: str | None
    options: dict[str, Any]
    aim: Target | None
    forward: Forward | None
    classes: bool

    def read(self, data: Any, **stream: Any) -> Gathered:
        """Go through the data once.

        Raises:
            InputError: when samples cannot be laid over each other, or no layer can be compared.
        """
        reader, units = FeatureReader(self.model, self.layers, forward=self.forward), Features()
        maps: dict[str, list[torch.Tensor]] = {}
        axes: dict[str, Axes] = {}
        labels: list[Any] = []
        predicted: list[torch.Tensor] = []
        labelled, count, device, how, target = True, 0, home(self.model), "", ""
        lists = class_lists(self.aim) if self.method is not None else []
        for batch in batches(data, doing="comparing groups", **stream):
            here = batch.inputs if device is None else batch.inputs.map(lambda x: x.to(device))
            units.add(reader.read(here))
            if self.classes:
                predicted.append(self._classes(here))
            if self.method is not None:
                found = self._attribution(here, batch)
                how, target = found.how, "label of each sample" if self.aim is None else self.aim.label
                for name, (shares, named) in _shares(found, here.batch).items():
                    if name in maps and maps[name][0].shape[1:] != shares.shape[1:]:
                        raise InputError(
                            f"the maps of input {name!r} are {tuple(maps[name][0].shape[1:])} and, from sample "
                            f"{batch.start} on, {tuple(shares.shape[1:])}: places of samples of different sizes cannot "
                            "be compared. Bring them to one size, or give method=None to compare activations alone."
                        )
                    maps.setdefault(name, []).append(shares)
                    axes[name] = named
            labelled = labelled and batch.labels is not None
            labels += batch.labels or []
            count += here.batch
        check_length(lists, count)
        whole = units.joined("compared between samples")
        joined = {name: torch.cat(parts) for name, parts in maps.items()}
        classes = torch.cat(predicted) if predicted else None
        return Gathered(whole, units.left_out, joined, axes, labels if labelled else None, classes, target, how, count)

    def _classes(self, inputs: Inputs) -> torch.Tensor:
        with borrowed(self.model, grad=False):
            scores = class_scores(inputs.run(self.model, self.forward))
        if scores.shape[1] < 2:
            raise TargetError(
                "the model returns one number per sample, which names no class; give forward=, which returns a score "
                "for each class: lambda model, x: torch.cat([-model(x), model(x)], dim=1)."
            )
        return scores.argmax(dim=1).cpu()

    def _attribution(self, inputs: Inputs, batch: Batch) -> Attribution:
        method = self.method
        assert method is not None
        aim = of_batch(self.aim, batch)
        return saliency(self.model, inputs, target=aim, method=method, forward=self.forward, **self.options)


def _shares(found: Attribution, batch: int) -> dict[str, tuple[torch.Tensor, Axes]]:
    """Each map as shares of its sample's |values|, over places and summed over channels, `(batch, *places)`."""
    given = found.values if isinstance(found.values, dict) else {"input": found.values}
    whole = sum(values.detach().double().abs().reshape(batch, -1).sum(dim=1) for values in given.values())
    assert isinstance(whole, torch.Tensor)
    shares: dict[str, tuple[torch.Tensor, Axes]] = {}
    for name, values in given.items():
        axes = found.axes if len(given) == 1 and found.axes is not None else None
        if axes is None or len(axes) != values.ndim:
            axes = _guess(values, found)
        part = values.detach().double() / whole.clamp_min(1e-300).reshape(-1, *[1] * (values.ndim - 1))
        unit = next((axes.index(one) for one in ("channel", "feature") if one in axes), None)
        if unit is not None and values.ndim > 2:
            part, axes = part.sum(dim=unit), (*axes[:unit], *axes[unit + 1 :])
        if part.ndim == 1:  # one value for each sample
            part, axes = part.unsqueeze(1), (*axes, "feature")
        shares[name] = (_cells(part).cpu(), axes[1:])
    return shares


def _guess(values: torch.Tensor, found: Attribution) -> Axes:
    if values.ndim == 3 and (not isinstance(found.inputs, torch.Tensor) or found.inputs.ndim == 3):
        return ("batch", "channel", "time") if values.shape[1] < values.shape[2] else ("batch", "time", "feature")
    places = ("height", "width") if values.ndim < 5 else ("depth", "height", "width")
    known: dict[int, Axes] = {1: (), 2: ("feature",), 3: places, 4: ("channel", *places), 5: ("channel", *places)}
    return ("batch", *known.get(values.ndim, tuple(f"axis {k}" for k in range(1, values.ndim))))


def _cells(shares: torch.Tensor) -> torch.Tensor:
    """Sums over cells of pictures and volumes, which hold too many places to be tested one by one."""
    places = shares.ndim - 1
    if places not in CELLS:
        return shares
    grid = [min(size, CELLS[places]) for size in shares.shape[1:]]
    for axis, count in enumerate(grid, start=1):
        size = shares.shape[axis]
        cell = torch.arange(size) * count // size
        sums = torch.zeros(*shares.shape[:axis], count, *shares.shape[axis + 1 :], dtype=shares.dtype)
        shares = sums.to(shares.device).index_add_(axis, cell.to(shares.device), shares)
    return shares
