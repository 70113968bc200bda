"""Making the edits of a run: hooks that change what layers return or take, and the heads inside attentions."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from layerlens.axes.call_site import CallSite
from layerlens.axes.follow import Followed
from layerlens.axes.followed import followed
from layerlens.axes.layout import only
from layerlens.errors import OptionError, RecordError
from layerlens.inputs.inputs import Inputs
from layerlens.model.checkpointing import as_edit, refuse_in_checkpoints
from layerlens.model.layers import LayerPath, Layers
from layerlens.model.selection import Calls, InputOf, Names, name_of
from layerlens.model.tensors import changeable, exchanged, tensor_path
from layerlens.model.trees import describe

from .edit_site import Site
from .edits import Change
from .heads import HeadSite, head_sites, own_heads, reading_inside

Edit: TypeAlias = Callable[[Any], Any] | Change
"""A function of a layer's output that returns the new output, or a `Change`."""

Edited: TypeAlias = LayerPath | InputOf
"""What an edit changes: what a layer returns, or takes."""

Edits: TypeAlias = Mapping[Any, Edit | Sequence[Edit]]
"""Layer selection, which may name calls and tensors -> an edit, or several that follow each other."""

PlannedEdit: TypeAlias = tuple[Calls, Names, Edit]
"""An edit of the named calls and tensors of a layer; None for all."""


class MadeEdits:
    """The edits of a run, made by hooks within a `with` block.

    Args:
        model: the model.
        layers: its layers.
        edits: edits of what layers return.
        arguments: edits of what they take.
        follow: returns the axes of the run, if an edit needs them; None to follow them when the model is called.

    Raises:
        LayerNotFound: when a selection matches no layer.
        OptionError: when two edits name one layer and call.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        edits: Edits,
        arguments: Edits,
        follow: Callable[[], Followed] | None = None,
    ) -> None:
        self._model, self._layers, self._follow_run = model, layers, follow
        taken = {one: edit for one, edit in edits.items() if isinstance(one, InputOf)}
        if also := [repr(one) for one in taken if one.layer in arguments]:
            raise OptionError(f"two edits name the {', '.join(also)}; merge them into one list or function.")
        arguments = {**arguments, **{one.layer: edit for one, edit in taken.items()}}
        edits = {one: edit for one, edit in edits.items() if one not in taken}
        self._known: Followed | None = None
        self._outputs, self._arguments = _by_layer(layers, edits), _by_layer(layers, arguments)
        both = (*self._outputs.items(), *self._arguments.items())
        every = [(path, one) for path, series in both for one in series]
        self._missing: dict[tuple[LayerPath, int | None], None] = {
            (path, call): None for path, (calls, _, _) in every for call in ([None] if calls is None else sorted(calls))
        }
        changes = [(path, edit) for path, (_, _, edit) in every if isinstance(edit, Change)]
        self._needs_axes = any(edit.needs_axes for _, edit in changes)
        self._of_heads = [path for path, edit in changes if edit.part.heads is not None]
        self._calls: dict[LayerPath, int] = {}
        self._before: dict[LayerPath, int] = {}
        """Calls of each layer before the present call of the model."""
        self._inside: dict[LayerPath, list[tuple[LayerPath, Calls, Change, HeadSite]]] = {}
        self._handles: list[RemovableHandle] = []
        self._skip: Callable[[], bool] = bool

    @property
    def paths(self) -> list[LayerPath]:
        """The layers of which the output is edited."""
        return list(self._outputs)

    @property
    def not_made(self) -> tuple[str, ...]:
        """Layers, or calls, that were to be edited and did not run."""
        return tuple(path if call is None else f"{path}#{call}" for path, call in self._missing)

    @contextlib.contextmanager
    def attached(self, skip: Callable[[], bool]) -> Iterator[None]:
        """Attach the hooks, which do nothing while `skip()` is true.

        Yields:
            Nothing.
        """
        self._skip = skip
        with contextlib.ExitStack() as stack:
            stack.callback(self._detach)
            if self._of_heads:
                paths = {path for path, module in self._layers.items() if isinstance(module, nn.MultiheadAttention)}
                stack.enter_context(reading_inside(self._model, paths, self._edit_inside))
            if self._needs_axes and self._follow_run is not None:
                self._known = self._follow_run()
            elif self._needs_axes:
                on_call = self._model.register_forward_pre_hook(self._follow, with_kwargs=True, prepend=True)
                self._handles.append(on_call)
            if self._known is not None or not self._of_heads:
                self._attach()
            yield

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _follow(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Follow the axes of a call of the model, before it runs."""
        if self._skip():
            return
        first = self._known is None
        self._known, self._before = followed(self._model, Inputs(args, kwargs)), dict(self._calls)
        if first and self._of_heads:
            self._attach()

    def _attach(self) -> None:
        outputs, arguments = self._outputs, dict(self._arguments)
        if self._of_heads and self._known is not None:
            outputs, arguments = self._with_heads(self._known)
        for path, edits in outputs.items():
            self._handles.append(self._layers[path].register_forward_hook(self._hook(path, edits)))
        for path, edits in arguments.items():
            hook = self._hook(path, edits, arguments=True)
            before = as_edit(lambda module, args, kwargs, hook=hook: hook(module, None, (args, kwargs)))
            self._handles.append(self._layers[path].register_forward_pre_hook(before, with_kwargs=True))

    def _hook(self, path: LayerPath, edits: list[PlannedEdit], *, arguments: bool = False) -> Callable[..., Any]:
        counter = itertools.count()

        def hook(module: nn.Module, args: object, output: object) -> Any:
            if self._skip():
                return None
            call, changes = next(counter), False
            self._calls[path] = call + 1
            for calls, tensors, edit in edits:
                if calls is not None and call not in calls:
                    continue
                if isinstance(edit, Change):
                    known = self._site(path, call) if edit.needs_axes else None
                    first = self._site(path, 0) if known is not None and known.index else None
                    site = Site(path, call, module, tensors, arguments=arguments, known=known, first=first)
                    edited = edit.apply(output, site)
                else:
                    owner = None if arguments else module
                    edited = edit(output) if tensors is None else _edit_tensors(owner, output, tensors, path, edit)
                if edited is None and output is not None:
                    raise OptionError(f"the edit of layer {path!r} returned None; it must return the new output.")
                changes |= edited is not output and not _keeps(edit)
                output = edited
                self._made(path, call)
            if changes:
                refuse_in_checkpoints(path)
            return output

        return hook if all(_keeps(edit) for _, _, edit in edits) else as_edit(hook)

    def _made(self, path: LayerPath, call: int) -> None:
        self._missing.pop((path, call), None)
        self._missing.pop((path, None), None)

    def _site(self, path: LayerPath, call: int) -> CallSite | None:
        """The axes of one call of a layer, if they were followed."""
        if self._known is None:
            return None
        try:
            return self._known.site(path, call - self._before.get(path, 0))
        except RecordError:  # the route changed
            return None

    def _with_heads(
        self, known: Followed
    ) -> tuple[dict[LayerPath, list[PlannedEdit]], dict[LayerPath, list[PlannedEdit]]]:
        """Return the edits of outputs and of arguments, with those of heads where the heads lie side by side.

        Raises:
            OptionError: when a layer has no heads, or several attentions.
        """
        outputs: dict[LayerPath, list[PlannedEdit]] = {}
        arguments = {path: list(edits) for path, edits in self._arguments.items()}
        sites = head_sites(self._model, known)
        for path, edits in self._outputs.items():
            for calls, tensors, edit in edits:
                if not isinstance(edit, Change) or edit.part.heads is None:
                    outputs.setdefault(path, []).append((calls, tensors, edit))
                    continue
                count = own_heads(known, path, tensors)
                if count is not None:
                    change = dataclasses.replace(edit, part=edit.part.of_heads(count, f"layer {path!r}"))
                    outputs.setdefault(path, []).append((calls, tensors, change))
                    continue
                site = _attention(path, sites)
                change = dataclasses.replace(edit, part=edit.part.of_heads(site.count, f"attention {site.attention!r}"))
                if site.kind == "attention":
                    self._inside.setdefault(site.path, []).append((path, calls, change, site))
                    continue
                name = f"{0 if site.tensor[:1].isdigit() else 1}/{site.tensor}".replace(".", "/")
                arguments.setdefault(site.path, []).append((calls, frozenset({name}), change))
                self._missing = {
                    ((site.path, call) if one == path else (one, call)): None for one, call in self._missing
                }
        return outputs, arguments

    def _edit_inside(self, path: LayerPath, call: int, side_by_side: torch.Tensor) -> torch.Tensor:
        """Edit the heads of an `nn.MultiheadAttention` before its output projection."""
        if self._skip():
            return side_by_side
        for named, calls, change, _ in self._inside.get(path, ()):
            if calls is not None and call not in calls:
                continue
            known = self._site(path, call)
            if known is not None:  # torch puts places first inside
                own = known.axes("attn_output")
                order = [only(own, wanted) for wanted in ("place", "batch", "unit")]
                known = CallSite(path, call, {"": tuple(own[place] for place in order if place is not None)}, {})
            site = Site(path, call, self._layers[path], known=known)
            side_by_side = change.apply(side_by_side, dataclasses.replace(site, module=nn.Identity()))
            self._made(named, call)
        return side_by_side


def _attention(path: LayerPath, sites: Sequence[HeadSite]) -> HeadSite:
    """Return the attention that a layer is, holds, or projects.

    Raises:
        OptionError: when there is none, or several.
    """
    inside = f"{path}." if path else ""
    found = [one for one in sites if one.path == path or one.attention == path
             or (one.path.startswith(inside) and f"{one.attention}.".startswith(inside))]  # fmt: skip
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(repr(one.attention) for one in found[:4]) + ", ..." * (len(found) > 4)
        raise OptionError(f"layer {path!r} holds {len(found)} attentions: name one of {names}.")
    names = ", ".join(repr(one.attention) for one in sites[:4]) + ", ..." * (len(sites) > 4)
    raise OptionError(
        f"layer {path!r} has no heads: no attention splits it, or the one in it has no output projection that is a "
        f"layer. Layers with heads: {names or 'none'}. For a slice of units give units=range(start, end)."
    )


def _edit_tensors(module: nn.Module | None, output: object, names: Names, path: LayerPath, edit: Edit) -> Any:
    """Return an output with `edit(tensor)` instead of each tensor that is named.

    Raises:
        OptionError: when the edit returns anything but a tensor.
    """
    new: dict[str, torch.Tensor] = {}
    for name, tensor in changeable(module, output, names, path).items():
        new[name] = edit(tensor)  # type: ignore[operator]
        if not isinstance(new[name], torch.Tensor):
            raise OptionError(f"the edit of {tensor_path(path, name)!r} returned {describe(new[name])}, not a tensor.")
    return exchanged(module, output, new)


def _keeps(edit: Edit) -> bool:
    """Whether an edit returns the numbers that it was given, so that a recomputed block needs it not."""
    return isinstance(edit, Change) and edit.keeps


def _by_layer(layers: Layers, edits: Edits) -> dict[LayerPath, list[PlannedEdit]]:
    """Return path -> (calls, tensors, edit) in the order in which they are made.

    Raises:
        OptionError: when two edits name one layer and call, or one is neither a change nor a function.
    """
    found: dict[LayerPath, list[PlannedEdit]] = {}
    for selection, given in edits.items():
        series: list[Edit] = list(given) if isinstance(given, (list, tuple)) else [given]  # type: ignore[list-item]
        if wrong := [edit for edit in series if not isinstance(edit, Change) and not callable(edit)]:
            raise OptionError(
                f"the edit of {selection!r} is {describe(wrong[0])}. Give one of layerlens.edits, such as zero(), "
                "scale(0.5) or replace(values), a function output -> output, or a list of those."
            )
        for path, (calls, tensors, _) in layers.select(selection, calls=True, tensors=True).found().items():
            for other, also, _ in found.get(path, ()):
                if (calls is None or other is None or calls & other) and (not tensors or not also or tensors & also):
                    name = name_of(path, None, tensors)
                    raise OptionError(f"two edits name layer {name!r}; merge them into one list or function.")
            found[path] = [*found.get(path, ()), *((calls, tensors, edit) for edit in series)]
    return found
