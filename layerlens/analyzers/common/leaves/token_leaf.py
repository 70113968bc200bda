"""Which calls of embedding layers read which token ids, and how the ids are laid out there."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.layers import LayerPath
from layerlens.model.placement import whole
from layerlens.probes.call import Call
from layerlens.probes.probe import Probe

from ..samples import or_none

Arrange = Callable[[torch.Tensor], torch.Tensor]
"""From the layout of the ids, (batch, token, ...) with any axes behind, to that of a call's input."""

Lookups = list[tuple[Call, torch.Tensor]]
"""Calls of embeddings, and the ids that each looked up."""

_NOT_TOKENS = re.compile(r"position|pos_ids|type|segment|mask|lang", re.IGNORECASE)
"""Names of integer inputs that hold the position or kind of a token, not its id."""


@dataclasses.dataclass(frozen=True)
class Use:
    """One call of an embedding layer on token ids.

    Attributes:
        layer: path of the embedding.
        call: index of the call.
        arrange: how the ids, and what is embedded, are laid out in the call.
        output: what the call returned.
    """

    layer: LayerPath
    call: int
    arrange: Arrange
    output: torch.Tensor


def token_uses(
    model: nn.Module, inputs: Inputs, forward: Forward | None, ids: Mapping[str, torch.Tensor]
) -> dict[str, list[Use]]:
    """Find the uses of each integer input that feeds embeddings, by input name; the model is run once.

    An embedding may read the ids plus constants, such as an atomic number less 1, or categories of several columns in
    one table. Where none reads them as they are, the model is run again with other ids, and what it looks up has to
    change as they do.

    Inputs that hold positions or kinds of tokens (`position_ids`, `token_type_ids`, or rows that count 0, 1, 2, ...)
    are left out when others feed embeddings as well.
    """

    def lookups(inputs: Inputs) -> Lookups:
        with torch.no_grad(), Probe(model, nn.Embedding, inputs=True) as record:
            inputs.run(model, forward)
        return [(call, given) for call in record.order if (given := _read(model, call)) is not None]

    def changed(name: str, x: torch.Tensor) -> Lookups:
        return lookups(inputs.replace({name: x}))

    if not any(isinstance(module, nn.Embedding) for module in model.modules()):
        return {}
    calls_made = lookups(inputs)
    uses_by_input = _uses(calls_made, ids)
    if calls_made and not uses_by_input:
        for name, x in ids.items():
            uses_by_input |= _shifted(calls_made, name, x, functools.partial(changed, name))
    meant = {name: uses for name, uses in uses_by_input.items() if not (_NOT_TOKENS.search(name) or _counts(ids[name]))}
    return meant or uses_by_input


def _shifted(
    calls_made: Lookups, name: str, ids: torch.Tensor, lookups: Callable[[torch.Tensor], Lookups]
) -> dict[str, list[Use]]:
    """The uses of an input by embeddings that look up its ids plus constants: those change as the ids do."""
    one = torch.zeros_like(ids)
    one.view(-1)[:1] = 1
    for other in (ids.roll(1, -1), ids + one, ids - one):  # of ids that are all the same, one changes
        found = None if torch.equal(other, ids) else or_none(functools.partial(lookups, other))
        if found is None or [given.shape for _, given in found] != [given.shape for _, given in calls_made]:
            continue
        pairs = zip(calls_made, found, strict=True)
        changes = [(call, after - before) for (call, before), (_, after) in pairs if not torch.equal(after, before)]
        return _uses(changes, {name: other - ids})
    return {}


def _uses(calls_made: Lookups, ids: Mapping[str, torch.Tensor]) -> dict[str, list[Use]]:
    """The uses of each input, by the content of what the embeddings looked up."""
    uses_by_input: dict[str, list[Use]] = {}
    for names, calls in _by_content(calls_made, ids).items():
        starts = dict.fromkeys(names, 0)
        for place, (call, given) in enumerate(calls):
            name = names[place * len(names) // len(calls)]  # inputs of equal content: in the order of the calls
            arrange, starts[name] = _arrangement(ids[name], given, starts[name])
            if arrange is not None:
                uses_by_input.setdefault(name, []).append(Use(call.layer, call.index, arrange, call.output))
    return uses_by_input


def _read(model: nn.Module, call: Call) -> torch.Tensor | None:
    """Return what an embedding looked up; None when it did not look up its input, as in some position embeddings."""
    args, kwargs = call.inputs
    given = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
    if given is None or given.is_floating_point() or not given.ndim or not isinstance(call.output, torch.Tensor):
        return None
    if call.output.shape[:-1] != given.shape:
        return None
    module = model.get_submodule(call.layer)
    if type(module).forward is nn.Embedding.forward:
        return given
    weight = whole(module, "weight") if module._parameters.get("weight") is not None else module.weight
    if not isinstance(weight, torch.Tensor) or int(given.max()) >= len(weight) or int(given.min()) < 0:
        return None
    rows, output = weight.detach()[given.to(weight.device)].to(call.output.device).double(), call.output.double()
    if rows.shape != output.shape:
        return None
    scale = (rows * output).sum() / rows.square().sum().clamp_min(1e-30)  # scaled embeddings are lookups as well
    return given if torch.allclose(output, scale * rows, rtol=1e-3, atol=1e-5) else None


def _by_content(calls: Lookups, ids: Mapping[str, torch.Tensor]) -> dict[tuple[str, ...], Lookups]:
    """The calls that read each input; inputs of equal content, which no call distinguishes, together."""
    calls_by_inputs: dict[tuple[str, ...], Lookups] = {}
    for call, given in calls:
        names = tuple(name for name, x in ids.items() if _arrangement(x, given, 0)[0] is not None)
        whole = tuple(name for name in names if ids[name].numel() == given.numel()) or names[:1]
        if whole:
            calls_by_inputs.setdefault(whole, []).append((call, given))
    return calls_by_inputs


def _arrangement(ids: torch.Tensor, given: torch.Tensor, start: int) -> tuple[Arrange | None, int]:
    """How `given` is made of `ids`, None if it is not; and where the next part of them would start."""
    if ids.shape == given.shape and torch.equal(ids, given):
        return _same, start
    rest = tuple(given.shape[1:])
    if ids.numel() == given.numel():
        if torch.equal(ids.flatten(), given.flatten()):
            return lambda v: v.reshape(-1, *rest, *v.shape[ids.ndim :]), start
        if ids.ndim == 2 and torch.equal(ids.t().flatten(), given.flatten()):
            if given.ndim == 2:
                return lambda v: v.transpose(0, 1), start
            return lambda v: v.transpose(0, 1).reshape(-1, *rest, *v.shape[2:]), start
        return None, start
    if ids.ndim == 2 and given.shape[0] == ids.shape[0] and given.ndim <= 2:  # some steps of a sequence
        length = given.shape[1] if given.ndim == 2 else 1
        for first in _from(start, ids.shape[1] - length + 1):
            if torch.equal(ids[:, first : first + length], given.reshape(len(ids), length)):
                return _steps(first, length if given.ndim == 2 else None), first + length
    return None, start


def _steps(first: int, length: int | None) -> Arrange:
    """The tokens from `first` on; without `length` one of them, without its axis."""
    return (lambda v: v[:, first]) if length is None else (lambda v: v[:, first : first + length])


def _same(v: torch.Tensor) -> torch.Tensor:
    return v


def _from(start: int, count: int) -> Iterator[int]:
    """Count from `start` to count - 1, then from 0.

    Yields:
        The numbers.
    """
    start = start if 0 <= start < count else 0
    yield from range(start, count)
    yield from range(start)


def _counts(ids: torch.Tensor) -> bool:
    """Whether every row counts 0, 1, 2, ...: positions."""
    return ids.ndim >= 2 and ids.shape[-1] > 2 and bool((ids == torch.arange(ids.shape[-1], device=ids.device)).all())
