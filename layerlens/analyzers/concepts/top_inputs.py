"""Which inputs of a data set a unit stands for: those with its largest relevance, or its largest activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.activation.activation_maps import chosen_units
from layerlens.analyzers.common.calls.call_shapes import call_index, one_layer
from layerlens.analyzers.common.features.batch_targets import check_length, class_lists, of_batch
from layerlens.analyzers.relevance.relevance import relevance
from layerlens.analyzers.relevance.rules.rulebook import Rulebook
from layerlens.axes.names import axes_of, unit_axis
from layerlens.errors import RecordError, check_count, choose
from layerlens.inputs.batches import Samples, batches, grouped
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.model.placement import home
from layerlens.model.trees import describe, first_tensor
from layerlens.probes.probe import Probe
from layerlens.results import TopInputs
from layerlens.targets.target import Spec, as_target

from .unit_ranking import Ranking
from .unit_regions import input_regions

By = Literal["relevance", "activation"]
Reduce = Literal["max", "sum", "mean"]

EFFECTIVE = 0.0455
"""Share of the largest gradient below which a place does not count to a region (Luo et al. 2016: 1 - 95.45%)."""


def top_inputs(
    model: nn.Module,
    data: Samples,
    layer: Selection,
    *,
    units: int | Sequence[int] | None = None,
    by: By = "relevance",
    k: int = 8,
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
    """The samples of a data set that each unit of a layer responds to most, in one pass through the data.

    `by="activation"` is activation maximization over the data set: what the unit detects. `by="relevance"` is relevance
    maximization: what the unit is used for when the model predicts the target; a strong activation that the score does
    not depend on ranks low.

    The data is read batch by batch. Memory holds one batch and at most units x k samples, whatever the data's size. Of
    equal values the earlier sample comes first.

    Args:
        model: any module.
        data: a tensor `(sample, ...)` or a dict of them, a torch Dataset or DataLoader, or any iterable of samples; an
            item may be a pair (x, label), where a label is a whole number. See `layerlens.inputs.batches`.
        layer: a path, or any selection that matches one layer.
        units: which, one or several; None for all.
        by: `"relevance"` (default) or `"activation"`.
        k: how many samples per unit; fewer where the data holds fewer.
        target: whose relevance, see `as_target`: None is the class predicted for each sample, `"label"` its label.
        rules: as in `relevance`.
        reduce: what of a unit's map counts: its largest value (None with activation), its sum (None with relevance) or
            its mean.
        call: which call of a layer that runs several times.
        regions: whether to find the box of the input that the unit sees at its strongest place; a forward and a
            backward pass for each unit and rank, after the data has been read.
        level: how much gradient a place in that box needs, as a share of the largest; 0 is the whole receptive field.
            See `input_regions`.
        batch_size: samples that run together; it changes speed and memory only.
        batched: whether the items of an iterable are batches; None: those of a DataLoader are.
        forward: as in `relevance`.
        read: makes model inputs of a batch, or of one text.
        progress: whether to show a bar; None shows it in a terminal.

    Returns:
        `TopInputs`: index, value, place and region of each unit's samples, and the samples.

    Raises:
        InputError: when the data is empty, cannot be read, or holds NaN; the message names the sample.
        LayerNotFound, SelectionError: when the selection does not match one layer.
        RecordError: when the layer does not run or returns no tensor with units.
        OptionError: when there is no such unit, or an option is out of range.
        TargetError: when the target does not fit, or a label is missing.

    Source: Achtibat et al. 2023, Nature Machine Intelligence 5, "From attribution maps to human-understandable
    explanations through concept relevance propagation": relevance maximization, the samples with the largest sum of
    the relevance of a unit.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> _ = net[0].weight.data.copy_(torch.eye(2)), net[0].bias.data.zero_()
        >>> data = torch.tensor([[1.0, 0.0], [3.0, 1.0], [2.0, 5.0]])
        >>> top_inputs(net, data, "1", by="activation", k=2).index
        tensor([[1, 2],
                [2, 1]])
    """
    choose("ranking", by, ("relevance", "activation"))
    how = choose("reduction", reduce or ("sum" if by == "relevance" else "max"), ("max", "sum", "mean"))
    check_count("k", k)
    path, module = one_layer(model, layer), Layers(model)[one_layer(model, layer)]
    aim = None if isinstance(target, str) and target == "label" else as_target(target)
    lists = class_lists(aim)
    device = home(model)
    settings: dict[str, Any] = {"k": k, "reduce": how, "call": call, "level": level if regions else None}
    ranking = Ranking(k, how)
    chosen: tuple[int, ...] = ()
    stream = batches(data, batch_size, batched=batched, read=read, progress=progress, doing=f"top inputs by {by}")
    for batch in stream:
        here = batch.inputs.to(device)
        if by == "activation":
            output = _output(model, here, path, call, forward)
        else:
            found = relevance(model, here, target=of_batch(aim, batch), rules=rules, layers=path, forward=forward)
            calls = found.layers.get(path, ())
            output = calls[call_index(path, len(calls), call)]
            settings |= {"rules": found.settings["rules"]}
        maps = unit_maps(path, module, output, here.batch)
        chosen = chosen or chosen_units(path, maps.shape[1], units)
        with torch.inference_mode(False), torch.no_grad():
            ranking.add(batch.start, batch.inputs, maps[:, list(chosen)], chosen)
    check_length(lists, ranking.count)
    boxes = None
    if regions:
        boxes = _regions(model, ranking, path, module, chosen, call, level, batch_size, forward)
    named = by if by == "activation" else f"{by} ({settings['rules']['name']})"
    return TopInputs(
        layer=path,
        call=call,
        by=by,
        units=chosen,
        index=ranking.index,
        values=ranking.values,
        places=ranking.places,
        regions=boxes,
        inputs={index: _sample(inputs) for index, inputs in sorted(ranking.kept.items())},
        count=ranking.count,
        target="" if by == "activation" else "label of each sample" if aim is None else aim.label,
        method=f"{named}, {how} over places",
        settings=settings,
    )


def unit_maps(path: LayerPath, module: nn.Module, output: torch.Tensor, batch: int) -> torch.Tensor:
    """A layer's output, or its relevance, as `(batch, unit, *places)`.

    Raises:
        RecordError: when it has no batch axis of this length.
    """
    axes = axes_of(module, output)
    sample = axes.index("batch") if axes is not None and "batch" in axes else 0
    if not output.ndim or output.shape[sample] != batch:
        raise RecordError(
            f"layer {path!r} returned {describe(output)} for {batch} sample(s): no axis tells them apart."
        )
    if output.ndim == 1:
        return output.unsqueeze(1)
    return output.movedim((sample, unit_axis(module, output)), (0, 1))


def _output(model: nn.Module, inputs: Inputs, path: LayerPath, call: int, forward: Forward | None) -> torch.Tensor:
    with borrowed(model, grad=False), Probe(model, path) as record:
        inputs.run(model, forward)
    calls = record.calls(path)
    output = first_tensor(calls[call_index(path, len(calls), call)].output)
    if output is None:
        raise RecordError(f"layer {path!r} returned no tensor, in which units could be told.")
    return output


def _regions(
    model: nn.Module,
    ranking: Ranking,
    path: LayerPath,
    module: nn.Module,
    units: tuple[int, ...],
    call: int,
    level: float,
    size: int,
    forward: Forward | None,
) -> torch.Tensor | None:
    """The boxes `(unit, rank, axis, 2)`."""
    device = home(model)
    ranks = [(row, rank) for row in range(len(units)) for rank in range(ranking.index.shape[1])]
    wanted = ((ranking.kept[int(ranking.index[place])], place) for place in ranks)
    found: list[torch.Tensor] = []
    for inputs, places in grouped(wanted, size):
        at = [(row, *ranking.places[row, rank].tolist()) for row, rank in places]  # (row, *place) of each sample

        def pick(output: torch.Tensor, at: Any = at) -> torch.Tensor:
            maps = unit_maps(path, module, output, len(at))
            index = [(sample, units[row], *place) for sample, (row, *place) in enumerate(at)]
            return torch.stack([maps[one] for one in index])

        here = inputs.to(device)
        boxes = input_regions(model, here, path, pick, call=call, level=level, forward=forward)
        if boxes is None:
            return None
        found.append(boxes)
    joined = torch.cat(found)
    return joined.reshape(len(units), -1, *joined.shape[1:])


def _sample(inputs: Inputs) -> Any:
    tensors = {name: tensor[0] if tensor.ndim else tensor for name, tensor in inputs.tensors().items()}
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors
