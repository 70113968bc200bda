"""What is compared between groups: each sample's mean activation of every unit, and its shares of attribution."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.features.batch_targets import check_length, of_batch
from layerlens.analyzers.common.features.layer_features import FeatureReader, Features
from layerlens.analyzers.saliency.saliency import one_method, saliency
from layerlens.axes.provenance.roles import UNITS
from layerlens.errors import AxesUnknown, InputError, TargetError
from layerlens.inputs.batches import Data
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.outputs import class_scores
from layerlens.targets.target import Spec, as_target

CELLS = {2: 16, 3: 8}
"""Cells along each axis of a map with so many axes of places; other maps keep their places."""


@dataclasses.dataclass
class SampleTables:
    """Numbers of every sample of a data set.

    Attributes:
        layers: call of a layer -> `(samples, units)`.
        left_out: call of a layer -> why it has none.
        maps: input -> shares `(samples, *places)`.
        axes: input -> names of the places' axes.
        labels: labels of the samples, where the data has them.
        predicted: class of each sample, where it was asked for.
        target: name of the target of the attribution.
        method: name of the method of attribution.
        count: number of samples.
        features: input -> names of its features, of a table where they are known.
    """

    layers: dict[str, torch.Tensor]
    left_out: dict[str, str]
    maps: dict[str, torch.Tensor]
    axes: dict[str, tuple[str, ...]]
    labels: list[Any] | None
    predicted: torch.Tensor | None
    target: str
    method: str
    count: int
    features: dict[str, tuple[str, ...]]


def sample_tables(
    model: nn.Module,
    data: Data,
    layers: Selection,
    target: Spec,
    method: str | None,
    options: dict[str, Any] | None,
    forward: Forward | None,
    what: str,
    *,
    classes: bool = False,
) -> SampleTables:
    """Read a data set once, with the options of `compare_groups`; `what` names the analysis in errors.

    Raises:
        InputError: when samples have maps of different sizes, or no layer can be compared.
    """
    score = None if isinstance(target, str) and target == "label" else as_target(target)
    reader, units = FeatureReader(model, layers, forward=forward), Features()
    maps: dict[str, list[torch.Tensor]] = {}
    axes: dict[str, tuple[str, ...]] = {}
    features: dict[str, tuple[str, ...]] = {}
    labels: list[Any] = []
    predicted: list[torch.Tensor] = []
    labeled, count, used = True, 0, ""
    for batch in data.batches(model, what):
        units.add(reader.read(batch.inputs))
        if classes:
            predicted.append(_predicted(model, batch.inputs, forward))
        if method is not None:
            attribution = saliency(
                model, batch.inputs, target=of_batch(score, batch), method=method, forward=forward, **(options or {})
            )
            used = one_method(used, attribution.how)
            for name, (shares, named) in _shares(attribution, batch.inputs.batch).items():
                if name in maps and maps[name][0].shape[1:] != shares.shape[1:]:
                    raise InputError(
                        f"the maps of input {name!r} are {tuple(maps[name][0].shape[1:])} and, from sample "
                        f"{batch.start} on, {tuple(shares.shape[1:])}: places of samples of different sizes cannot "
                        "be compared. Bring them to one size, or give method=None to compare activations alone."
                    )
                maps.setdefault(name, []).append(shares)
                axes[name] = named
                titles = attribution.features_of(None if isinstance(attribution.values, torch.Tensor) else name)
                features |= {name: titles} if shares.shape[1:] == (len(titles),) else {}
        labeled = labeled and batch.labels is not None
        labels += batch.labels or []
        count += batch.inputs.batch
    check_length(score if method is not None else None, count)
    return SampleTables(
        layers=units.joined("compared between samples"),
        left_out=units.left_out,
        maps={name: torch.cat(parts) for name, parts in maps.items()},
        axes=axes,
        labels=labels if labeled else None,
        predicted=torch.cat(predicted) if predicted else None,
        target="" if method is None else "label of each sample" if score is None else score.label,
        method=used,
        count=count,
        features=features,
    )


def _predicted(model: nn.Module, inputs: Inputs, forward: Forward | None) -> torch.Tensor:
    """Return the class predicted for each sample.

    Raises:
        TargetError: when the output holds no scores of several classes.
    """
    with borrowed(model, grad=False):
        scores = class_scores(inputs.run(model, forward))
    if scores.shape[1] < 2:
        raise TargetError(
            "the model returns one number per sample, which names no class; give forward=, which returns a score "
            "for each class: lambda model, x: torch.cat([-model(x), model(x)], dim=1)."
        )
    return scores.argmax(dim=1).cpu()


def _shares(attribution: Attribution, batch: int) -> dict[str, tuple[torch.Tensor, tuple[str, ...]]]:
    """Return each map as shares of its sample's |values|, over places and summed over channels, `(batch, *places)`."""
    given = attribution.values if isinstance(attribution.values, dict) else {"input": attribution.values}
    whole = sum(values.detach().double().abs().reshape(batch, -1).sum(dim=1) for values in given.values())
    assert isinstance(whole, torch.Tensor)
    shares: dict[str, tuple[torch.Tensor, tuple[str, ...]]] = {}
    for name, values in given.items():
        axes = attribution.axes_of(None if isinstance(attribution.values, torch.Tensor) else name)
        if values.ndim == 1:
            axes = ("batch",)
        if axes is None or len(axes) != values.ndim:
            raise AxesUnknown(
                f"the axes of the map of {name!r}, of shape {tuple(values.shape)}, by {attribution.method} are not "
                "known. Name them, such as Lens(model, axes={'0': ('batch', 'channel', 'height', 'width')})."
            )
        part = values.detach().double() / whole.clamp_min(1e-300).reshape(-1, *[1] * (values.ndim - 1))
        unit = next((axes.index(one) for one in UNITS if one in axes), None)
        if unit is not None and values.ndim > 2:
            part, axes = part.sum(dim=unit), (*axes[:unit], *axes[unit + 1 :])
        if part.ndim == 1:  # one value for each sample
            part, axes = part.unsqueeze(1), (*axes, "feature")
        shares[name] = (_cells(part).cpu(), axes[1:])
    return shares


def _cells(shares: torch.Tensor) -> torch.Tensor:
    """Sum over cells of pictures and volumes, which hold too many places to test one by one."""
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
