"""States and gates of recurrent layers, computed step by step from the module's weights and its input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from layerlens.analyzers.common.calls.call_shapes import call_index
from layerlens.errors import RecordError, SelectionError, warn
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.probes.call import Call
from layerlens.probes.probe import Probe
from layerlens.results import RecurrentStates
from layerlens.signatures import public

from .steps import Quantities, Weights, from_input, read_weights, step_of

RECURRENT = (nn.RNNBase, nn.RNNCellBase)

TOLERANCE = 1e-3
"""Differences from the module's own output above this fraction of its largest value cause a warning."""


@public
def recurrent_states(
    model: nn.Module,
    x: Input,
    layer: Selection = None,
    *,
    call: int = 0,
    forward: Forward | None = None,
) -> RecurrentStates:
    """Compute hidden and cell states and all gates of a recurrent layer at every step.

    The model runs once to record the input of the layer. Its states and gates, which fused kernels never return, are
    then computed by the equations of torch's documentation, and checked against what the module returned. Works for
    `nn.LSTM`, `nn.GRU` and `nn.RNN`, stacked, in both directions, with projections, with a given first state and
    with packed sequences; and for their cells, whose calls in a loop are the steps. In eval mode: dropout between
    stacked layers is off.

    Args:
        layer: a selection that matches one recurrent layer; None if the model has only one.
        call: ... The calls of a cell are its steps.

    Returns:
        `RecurrentStates`; each quantity is `(batch, time, unit)`, gates lie between 0 and 1. Memory: six numbers per
        unit and step of an LSTM, four of a GRU.

    Raises:
        SelectionError: when the selection matches several layers, or one that is not recurrent.
        RecordError: when the layer did not run, or has no such call.

    Warns:
        UserWarning: when the module returned other values, as a class that overrides `forward` may.

    Source: Hochreiter & Schmidhuber 1997; Cho et al. 2014; the equations of torch.nn.LSTM, GRU and RNN.

    Example:
        >>> rnn = nn.LSTM(3, 5, batch_first=True)
        >>> states = recurrent_states(nn.Sequential(rnn), torch.ones(2, 7, 3))
        >>> states.of("forget_gate").shape
        torch.Size([2, 7, 5])
        >>> torch.allclose(states.of("hidden"), rnn(torch.ones(2, 7, 3))[0])
        True
    """
    given = as_inputs(x)
    with borrowed(model, grad=False):
        path = recurrent_layer(model, layer)
        module = Layers(model)[path]
        with Probe(model, path, inputs=True) as record:
            given.run(model, forward)
        calls = record.calls(path)
        index = call_index(path, len(calls), call)
        if isinstance(module, nn.RNNCellBase):
            states, lengths, difference, scale = cell_states(path, module, calls)
        else:
            assert isinstance(module, nn.RNNBase)
            states, lengths, difference, scale = layer_states(module, calls[index])
    if bool((difference > TOLERANCE * scale).any()):
        warn(
            f"recurrent_states: {type(module).__name__} {path!r} returned values that differ by "
            f"{float(difference.max()):.3g} from the equations of torch; its class, a hook or low precision "
            "changes its output, and these states are not those that it used.",
        )
    kind = next(base.__name__ for base in type(module).__mro__ if base.__module__ == "torch.nn.modules.rnn")
    return RecurrentStates(path, kind, states, lengths, {"call": index}, {"difference": difference})


def recurrent_layer(model: nn.Module, layer: Selection) -> LayerPath:
    """Return the one recurrent layer that a selection names, or that the model has.

    Raises:
        SelectionError: when there are several, or none.
    """
    layers = Layers(model)
    paths = [path for path in layers.select(layer) if isinstance(layers[path], RECURRENT)]
    if len(paths) == 1:
        return paths[0]
    where = "the model" if layer is None else f"the selection {layer!r}"
    if not paths:
        raise SelectionError(
            f"{where} holds no nn.LSTM, nn.GRU, nn.RNN or cell of them. Other layers over time: activation_maps."
        )
    raise SelectionError(f"{where} holds {len(paths)} recurrent layers, one is needed: {', '.join(paths[:8])}.")


def layer_states(
    module: nn.RNNBase, call: Call
) -> tuple[dict[str, Quantities], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return states by direction, lengths, and for each sample the difference from the output and the output's size."""
    args, kwargs = call.inputs
    sequence = args[0] if args else kwargs["input"]
    first = args[1] if len(args) > 1 else kwargs.get("hx")
    values, lengths = _padded(sequence, module.batch_first)
    bare = not isinstance(sequence, PackedSequence) and sequence.ndim == 2
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    step, directions = step_of(module), ("", "_reverse") if module.bidirectional else ("",)
    states: dict[str, Quantities] = {}
    starts = _first_states(first, bare)
    for index in range(module.num_layers):
        outputs = []
        for way, suffix in enumerate(directions):
            weights = read_weights(module, f"_l{index}{suffix}", values.dtype)
            start = {name: part[index * len(directions) + way].to(values) for name, part in starts.items()}
            run = _run_direction(step, weights, values, start, lengths, reverse=bool(way))
            states[f"layer {index}{' reverse' if way else ''}"] = run
            outputs.append(run["hidden"])
        values = torch.cat(outputs, dim=-1).nan_to_num()  # nothing is read after a sample's end
    returned, last = call.output
    expected, _ = _padded(returned, module.batch_first)
    pairs = [(torch.cat(outputs, dim=-1), expected)]
    finals = {"hidden": last[0], "cell": last[1]} if isinstance(last, tuple) else {"hidden": last}
    for name, final in finals.items():
        ends = torch.stack([_end(run[name], lengths, reverse="reverse" in key) for key, run in states.items()], dim=1)
        pairs.append((ends, final[:, None].transpose(0, 1) if bare else final.transpose(0, 1)))
    worst = torch.stack([_largest_difference(ours, theirs) for ours, theirs in pairs]).amax(dim=0)
    scale = torch.stack([theirs.flatten(1).abs().amax(dim=1) for _, theirs in pairs]).amax(dim=0)
    return states, lengths, worst, scale


def _padded(sequence: torch.Tensor | PackedSequence, batch_first: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a sequence `(batch, time, feature)` and the length of each sample."""
    if isinstance(sequence, PackedSequence):
        values, lengths = pad_packed_sequence(sequence, batch_first=True)
        return values, lengths
    values = sequence[None] if sequence.ndim == 2 else sequence if batch_first else sequence.transpose(0, 1)
    return values, torch.full((len(values),), values.shape[1])


def _first_states(given: torch.Tensor | tuple[torch.Tensor, ...] | None, bare: bool) -> Quantities:
    """Return the states before the first step, each `(direction, batch, unit)`; empty if they are zero."""
    if given is None:
        return {}
    parts = dict(zip(("hidden", "cell"), given if isinstance(given, tuple) else (given,), strict=False))
    return {name: part[:, None] if bare else part for name, part in parts.items()}


def _run_direction(
    step: Callable[[Weights, torch.Tensor, Quantities], Quantities],
    weights: Weights,
    values: torch.Tensor,
    start: Quantities,
    lengths: torch.Tensor,
    *,
    reverse: bool,
) -> Quantities:
    """Compute all quantities of one direction of one layer, `(batch, time, unit)`, NaN after the end of a sample."""
    batch, count, _ = values.shape
    units = weights.of_hidden.shape[1]
    cells = units if weights.projection is None else weights.projection.shape[1]
    zeros = {"hidden": values.new_zeros(batch, units), "cell": values.new_zeros(batch, cells)}
    state = {**zeros, **start}
    given = from_input(weights, values)
    steps: list[Quantities] = []
    ends = lengths.to(values.device)
    for time in reversed(range(count)) if reverse else range(count):
        quantities = step(weights, given[:, time], state)
        inside = (time < ends)[:, None]
        state = {name: torch.where(inside, quantities.get(name, part), part) for name, part in state.items()}
        steps.append({name: part.where(inside, torch.nan) for name, part in quantities.items()})
    steps = steps[::-1] if reverse else steps
    return {name: torch.stack([one[name] for one in steps], dim=1) for name in steps[0]}


def _end(values: torch.Tensor, lengths: torch.Tensor, *, reverse: bool) -> torch.Tensor:
    """Return the state after the last step, `(batch, unit)`."""
    if reverse:
        return values[:, 0]
    rows = torch.arange(len(values), device=values.device)
    return values[rows, lengths.to(values.device) - 1]


def _largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return the largest difference of each sample; after its end the module returns 0."""
    return (ours.nan_to_num() - theirs.to(ours.dtype)).flatten(1).abs().amax(dim=1)


def cell_states(
    path: LayerPath, module: nn.RNNCellBase, calls: list[Call]
) -> tuple[dict[str, Quantities], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return states of all calls as steps, lengths, and for each sample the difference from the output and its size.

    Raises:
        RecordError: when the calls differ in their number of samples.
    """
    step, steps, differences, sizes = step_of(module), list[Quantities](), [], []
    for call in calls:
        args, kwargs = call.inputs
        x = args[0] if args else kwargs["input"]
        state = args[1] if len(args) > 1 else kwargs.get("hx")
        x = x[None] if x.ndim == 1 else x
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        parts = () if state is None else state if isinstance(state, tuple) else (state,)
        start = {name: part.reshape(len(x), -1).to(x) for name, part in zip(("hidden", "cell"), parts, strict=False)}
        zeros = x.new_zeros(len(x), module.hidden_size)
        weights = read_weights(module, "", x.dtype)
        quantities = step(weights, from_input(weights, x), {"hidden": zeros, "cell": zeros, **start})
        returned = call.output if isinstance(call.output, tuple) else (call.output,)
        for name, part in zip(("hidden", "cell"), returned, strict=False):
            theirs = part.reshape(len(x), -1).to(x)
            differences.append((quantities[name] - theirs).abs().amax(dim=1))
            sizes.append(theirs.abs().amax(dim=1))
        steps.append(quantities)
    batches = {len(quantities["hidden"]) for quantities in steps}
    if len(batches) > 1:
        raise RecordError(
            f"the calls of cell {path!r} have {', '.join(map(str, sorted(batches)))} samples; so its steps do not "
            "form a sequence. Run samples of one length together, or one by one."
        )
    states = {name: torch.stack([quantities[name] for quantities in steps], dim=1) for name in steps[0]}
    lengths = torch.full((batches.pop(),), len(calls))
    return {"layer 0": states}, lengths, torch.stack(differences).amax(dim=0), torch.stack(sizes).amax(dim=0)
