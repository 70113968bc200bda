"""Where values are read and replaced: what layers return or are given, heads inside an attention, codes of a basis."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.features.basis_site import BasisSite
from layerlens.model.call_tracking import Running
from layerlens.model.layers import LayerPath
from layerlens.model.trees import map_tensors, named_tensors
from layerlens.probes.heads import reading_inside
from layerlens.probes.made_edits import Edit
from layerlens.probes.probe import Probe

Kind = Literal["output", "input", "attention", "codes", "error"]
"""What a layer returned; a tensor that it is given, which the path then names (`"attention.out/0"`); what the heads of
`nn.MultiheadAttention` returned, side by side, before its output projection; the codes, or the error, of a basis."""

Place = LayerPath | BasisSite
"""A layer, or a basis at one."""

Key = tuple[Kind, Place, int]
"""Kind, place, and index of its call."""

Replace = Callable[[Key, Any], Any]
"""From the value of a call to the value to continue with."""


@contextlib.contextmanager
def hooked(model: nn.Module, places: Iterable[tuple[Kind, Place]], function: Replace) -> Iterator[Running | None]:
    """Call `function` on every value at some places while a `with` block runs the model once.

    Yields:
        The tracker of running layers if attentions are among the places, else None.
    """
    by_kind: dict[str, list[LayerPath]] = {"output": [], "input": [], "attention": []}
    bases: dict[BasisSite, None] = {}
    for kind, place in dict.fromkeys(places):
        if isinstance(place, BasisSite):
            bases[place] = None
        else:
            by_kind[kind].append(place)
    after = {path: [_output_edit(path, function)] for path in by_kind["output"]}
    for site in bases:
        after.setdefault(site.call.layer, []).append(_basis_edit(site, function))
    taken: dict[LayerPath, list[str]] = {}
    for named in by_kind["input"]:
        path, _, tensor = named.rpartition("/")
        taken.setdefault(path, []).append(tensor)
    before = {path: _input_edit(path, tensors, function) for path, tensors in taken.items()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(Probe(model, (), edits=after, arguments=before))
        running = None
        if by_kind["attention"]:
            running = stack.enter_context(reading_inside(model, set(by_kind["attention"]), _inside(function)))
        yield running


def _output_edit(path: LayerPath, function: Replace) -> Edit:
    calls = itertools.count()
    return lambda output: function(("output", path, next(calls)), output)


def _basis_edit(site: BasisSite, function: Replace) -> Edit:
    calls, index = itertools.count(), site.call.call

    def edit(output: Any) -> Any:
        if next(calls) != index:
            return output
        return site.changed(output, lambda kind, values: function((kind, site, index), values))

    return edit


def _input_edit(path: LayerPath, tensors: list[str], function: Replace) -> Edit:
    calls = itertools.count()

    def edit(given: Any) -> Any:
        index = next(calls)
        named = {name.partition(".")[2]: tensor for name, tensor in named_tensors(given)}  # of (args, kwargs)
        old = {name: named[name] for name in tensors if name in named}
        new = {id(tensor): function(("input", f"{path}/{name}", index), tensor) for name, tensor in old.items()}
        kept = all(new[id(tensor)] is tensor for tensor in old.values())
        return given if kept else map_tensors(given, lambda tensor: new.get(id(tensor), tensor))

    return edit


def _inside(function: Replace) -> Callable[[LayerPath, int, torch.Tensor], torch.Tensor]:
    return lambda path, index, side_by_side: function(("attention", path, index), side_by_side)
