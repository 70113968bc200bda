"""The inputs of a data set that drive a unit: those with its largest relevance, or its largest activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.activation.activation_maps import chosen_units
from layerlens.analyzers.common.calls.call_shapes import call_index, one_match
from layerlens.analyzers.common.calls.used_tensors import one_tensor
from layerlens.analyzers.common.features.basis import Basis
from layerlens.analyzers.common.features.batch_targets import check_length, of_batch
from layerlens.analyzers.relevance.relevance import relevance
from layerlens.analyzers.relevance.rules.rulebook import Rulebook
from layerlens.axes.followed import followed
from layerlens.errors import InputError, LayerLensError, OptionError, RecordError, check_count, choose
from layerlens.inputs.batches import Samples, batches, grouped
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.model.placement import home
from layerlens.model.selection import Matches, split_tensor
from layerlens.model.tensors import ByTensor, only, refuse_several, tensor_path
from layerlens.probes.probe import Probe
from layerlens.results import TopInputs
from layerlens.results.maps.attribution import Values
from layerlens.signatures import public
from layerlens.targets.target import Spec, as_target

from .unit_regions import input_regions, unit_maps

By = Literal["relevance", "activation"]
Reduce = Literal["max", "sum", "mean"]

EFFECTIVE = 0.0455
"""Share of the largest gradient below which a place does not count to a region (Luo et al. 2016: 1 - 95.45%)."""


@public(renamed={"k": "count"})
def top_inputs(
    model: nn.Module,
    data: Samples,
    layer: Selection | Basis,
    *,
    units: int | Sequence[int] | None = None,
    by: By = "relevance",
    count: int = 8,
    target: Spec = None,
    rules: str | Rulebook = "auto",
    reduce: Reduce | None = None,
    call: int = 0,
    regions: bool = True,
    level: float = EFFECTIVE,
    batch_size: int = 16,
    batched: bool | None = None,
    forward: Forward | None = None,
    read: Callable[[Any], Inputs] = as_inputs,
    progress: bool | None = None,
) -> TopInputs:
    """Find the samples of a data set that each unit of a layer responds to most, in one pass through the data.

    `by="activation"` is activation maximization over the data set: what the unit detects. `by="relevance"` is relevance
    maximization: what the unit is used for when the model predicts the target; a strong activation that the score does
    not depend on ranks low.

    The data is read batch by batch. Memory holds one batch and at most units x count samples, whatever the data's size.
    Of equal values the earlier sample comes first.

    Args:
        data: ... A label is a whole number.
        layer: ... Or a `Basis`, whose features are then the units, with `by="activation"`.
        units: one unit or several; None for all.
        by: `"relevance"` (default) or `"activation"`.
        count: number of samples per unit; fewer if the data holds fewer.
        target: ... `"label"` is the label of each sample.
        reduce: value of a unit's map that counts: its largest (None with activation), its sum (None with relevance) or
            its mean.
        regions: whether to find the box of the input that the unit sees at its strongest place; a forward and a
            backward pass for each unit and rank, after the data has been read.
        level: gradient that a place in that box needs, as a share of the largest; 0 gives the whole receptive field.
            See `input_regions`.

    Returns:
        `TopInputs`: index, value, place and region of each unit's samples, and the samples.

    Raises:
        InputError: if the data is empty, cannot be read, or holds NaN; the message names the sample.
        LayerNotFound, SelectionError: if the selection does not match one layer.
        RecordError: if the layer does not run or returns no tensor with units.
        OptionError: if a unit does not exist, or an option is out of range.
        TargetError: if the target does not fit, or a label is missing.

    Source: Achtibat et al. 2023, Nature Machine Intelligence 5, "From attribution maps to human-understandable
    explanations through concept relevance propagation": relevance maximization, the samples with the largest sum of
    the relevance of a unit.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> _ = net[0].weight.data.copy_(torch.eye(2)), net[0].bias.data.zero_()
        >>> data = torch.tensor([[1.0, 0.0], [3.0, 1.0], [2.0, 5.0]])
        >>> top_inputs(net, data, "1", by="activation", count=2).index
        tensor([[1, 2],
                [2, 1]])
    """
    choose("ranking", by, ("relevance", "activation"))
    how = choose("reduction", reduce or ("sum" if by == "relevance" else "max"), ("max", "sum", "mean"))
    check_count("count", count)
    basis = layer if isinstance(layer, Basis) else None
    if basis is not None and by != "activation":
        raise OptionError("top_inputs ranks the features of a basis by their activation: by='activation'.")
    if isinstance(layer, Basis):
        layer, call = layer.site(call)
    matches = one_match(model, layer, calls=False)
    (path,) = matches
    device = home(model)
    given = None if isinstance(target, str) and target == "label" else as_target(target)
    settings: dict[str, Any] = {"count": count, "reduce": how, "call": call, "level": level if regions else None}
    ranking = Ranking(count, how)
    chosen: tuple[int, ...] = ()
    tensors: dict[str, None] = {}
    stream = batches(data, batch_size, batched=batched, read=read, progress=progress, doing=f"top inputs by {by}")
    for batch in stream:
        here = batch.inputs.to(device)
        site = followed(model, here, forward).site
        if by == "activation":
            name, output = _output(model, here, matches, call, forward)
            matches = one_match(model, tensor_path(path, name))
        else:
            result = relevance(model, here, target=of_batch(given, batch), rules=rules, layers=matches, forward=forward)
            by_tensor = ByTensor({name[len(path) + 1 :]: calls for name, calls in result.layers.items()})
            name, calls = only(by_tensor, path, "which the score depends on") if by_tensor else ("", ())
            output = calls[call_index(path, len(calls), call)]
            settings |= {"rules": result.settings["rules"]}
        tensors[name] = None
        if len(tensors) > 1:
            refuse_several(path, tensors, "which the score depends on for different samples")
        maps = unit_maps(site(path, call), output, here.batch, name)
        with torch.inference_mode(False), torch.no_grad():
            maps = maps if basis is None else basis.codes(maps)
            chosen = chosen or chosen_units(path, maps.shape[1], units)
            ranking.add(batch.start, batch.inputs, maps[:, list(chosen)], chosen)
    check_length(given, ranking.seen)
    boxes = None
    (name,) = tensors
    if regions:
        boxes = _regions(model, ranking, tensor_path(path, name), chosen, call, level, batch_size, forward, basis)
    named = by if by == "activation" else f"{by} ({settings['rules']['name']})"
    return TopInputs(
        layer=tensor_path(path, name),
        call=call,
        by=by,
        units=chosen,
        index=ranking.index,
        values=ranking.values,
        places=ranking.places,
        regions=boxes,
        inputs={index: _sample(inputs) for index, inputs in sorted(ranking.kept.items())},
        count=ranking.seen,
        target="" if by == "activation" else "label of each sample" if given is None else given.label,
        method=f"{named}, {how} over places" + ("" if basis is None else f", features of {basis.name}"),
        settings=settings,
    )


def _output(
    model: nn.Module, inputs: Inputs, layer: Matches, call: int, forward: Forward | None
) -> tuple[str, torch.Tensor]:
    (path,) = layer
    with borrowed(model, grad=False), Probe(model, layer) as record:
        inputs.run(model, forward)
    calls = record.calls(path)
    found = one_tensor(model, inputs, forward, calls[call_index(path, len(calls), call)])
    if found is None:
        raise RecordError(f"layer {path!r} returned no tensor, so it has no units.")
    return found


def _regions(
    model: nn.Module,
    ranking: Ranking,
    path: LayerPath,
    units: tuple[int, ...],
    call: int,
    level: float,
    size: int,
    forward: Forward | None,
    basis: Basis | None,
) -> torch.Tensor | None:
    """The boxes `(unit, rank, axis, 2)`.

    Raises:
        InputError: when the model fails on as many samples; LayerLensError, OutOfMemoryError: as they are raised.
    """
    device, (layer, tensor) = home(model), split_tensor(path, Layers(model))
    ranks = [(row, rank) for row in range(len(units)) for rank in range(ranking.index.shape[1])]
    wanted = ((ranking.kept[int(ranking.index[place])], place) for place in ranks)
    by_batch: list[torch.Tensor] = []
    for inputs, pairs in grouped(wanted, size):
        index = [
            (sample, units[row], *ranking.places[row, rank].tolist()) for sample, (row, rank) in enumerate(pairs)
        ]  # (sample, unit, *place)

        inputs = inputs.to(device)

        def pick(output: torch.Tensor, index: list[tuple[int, ...]] = index, inputs: Inputs = inputs) -> torch.Tensor:
            maps = unit_maps(followed(model, inputs, forward).site(layer, call), output, len(index), tensor)
            maps = maps if basis is None else basis.codes(maps)
            return torch.stack([maps[place] for place in index])

        try:
            followed(model, inputs, forward)
            boxes = input_regions(model, inputs, path, pick, call=call, level=level, forward=forward)
        except (LayerLensError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise InputError(
                f"the boxes are found with {len(index)} samples in one pass, and {type(model).__name__} failed on them "
                f"({str(error)[:100]}). If it takes a fixed number of samples, leave the boxes out: regions=False."
            ) from error
        if boxes is None:
            return None
        by_batch.append(boxes)
    joined = torch.cat(by_batch)
    return joined.reshape(len(units), -1, *joined.shape[1:])


def _sample(inputs: Inputs) -> Values:
    tensors = {name: tensor[0] if tensor.ndim else tensor for name, tensor in inputs.tensors().items()}
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors


class Ranking:
    """The samples with the largest value of each unit, kept while a data set goes by.

    Args:
        best: number of samples per unit.
        reduce: how a map becomes a value: `"max"`, `"sum"` or `"mean"` over its places.

    Attributes:
        values: `(unit, rank)` float64, largest first.
        index: indices of the samples, `(unit, rank)`; of equal values the earlier comes first.
        places: place of the largest value of each map, `(unit, rank, axis)`.
        kept: the samples that are ranked for some unit, each a batch of one in main memory.
        seen: number of samples so far.
    """

    def __init__(self, best: int, reduce: str) -> None:
        self.best, self.reduce = best, reduce
        self.values = torch.zeros(0, 0, dtype=torch.float64)
        self.index = torch.zeros(0, 0, dtype=torch.int64)
        self.places = torch.zeros(0, 0, 0, dtype=torch.int64)
        self.kept: dict[int, Inputs] = {}
        self.seen = 0

    def add(self, start: int, inputs: Inputs, maps: torch.Tensor, units: tuple[int, ...]) -> None:
        """Rank the samples of a batch among those so far.

        Args:
            start: index of its first sample.
            inputs: the batch.
            maps: `(batch, unit, *places)`.
            units: the unit of each entry of axis 1, for errors.

        Raises:
            InputError: if a value is NaN.
        """
        values, places = _summarize(maps, self.reduce)
        nan = values.isnan().nonzero()
        if len(nan):
            row, unit = nan[0].tolist()
            raise InputError(f"the value of unit {units[unit]} for sample {start + row} of the data is NaN.")
        index = torch.arange(start, start + len(values)).expand(values.shape[1], -1)
        if self.seen:
            values = torch.cat([self.values, values.T], dim=1)
            index = torch.cat([self.index, index], dim=1)
            places = torch.cat([self.places, places.transpose(0, 1)], dim=1)
        else:
            values, places = values.T, places.transpose(0, 1)
        self.values, order = values.sort(dim=1, descending=True, stable=True)  # stable: earlier samples come first
        self.values, order = self.values[:, : self.best], order[:, : self.best]
        self.index = index.gather(1, order)
        self.places = places.gather(1, order.unsqueeze(-1).expand(-1, -1, places.shape[-1]))
        wanted = set(self.index.flatten().tolist())
        self.kept = {
            sample: self.kept[sample] if sample < start else _copy(inputs, sample - start) for sample in sorted(wanted)
        }
        self.seen = start + inputs.batch


def _summarize(maps: torch.Tensor, reduce: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return value and place of each map: `(batch, unit)` float64 and `(batch, unit, axis)`.

    Args:
        maps: `(batch, unit, *places)`.
        reduce: `"max"`, `"sum"` or `"mean"`.
    """
    shape = maps.shape[2:]
    flat = maps.detach().double().reshape(*maps.shape[:2], -1)
    largest = flat.max(dim=-1, keepdim=True).values
    positions = torch.arange(flat.shape[-1], device=flat.device)
    first = torch.where(flat == largest, positions, flat.shape[-1] - 1).amin(dim=-1).cpu()
    values = {"max": largest.squeeze(-1), "sum": flat.sum(dim=-1), "mean": flat.mean(dim=-1)}[reduce].cpu()
    if not shape:
        return values, torch.zeros(*values.shape, 0, dtype=torch.int64)
    return values, torch.stack(torch.unravel_index(first, shape), dim=-1)


def _copy(inputs: Inputs, row: int) -> Inputs:
    """One sample as a batch of one, copied to main memory."""
    return inputs.rows(torch.tensor([row])).map(lambda tensor: tensor.detach().to("cpu", copy=True))
