"""Probes: hooks that read, and edit, the outputs of layers. Only this file and `call_tracking` hook modules."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Container, Hashable, Iterator, Mapping
from threading import get_ident
from types import TracebackType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.hooks import RemovableHandle

from layerlens.axes.follow import Followed
from layerlens.axes.followed import followed as followed_axes
from layerlens.axes.provenance.table import sizes_of
from layerlens.axes.tracing import tracing
from layerlens.errors import OptionError, choose, warn
from layerlens.inputs.inputs import Inputs
from layerlens.model.borrowed import any_compiled, as_written
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.model.placement import parts
from layerlens.model.selection import Calls, Names
from layerlens.model.tensors import ByTensor, changeable, tensors_of
from layerlens.model.trees import first_tensor, map_tensors, named_tensors, unmapped, version
from layerlens.signatures import public
from layerlens.turns import whole

from .call import REDUCED, Call, Gradients, Run, Stored
from .made_edits import Edits, MadeEdits
from .record import Record

Keep = Literal["reference", "clone", "cpu"]
_graph_task = torch._C._current_graph_task_id  # -1 outside of backward passes
_OPEN_PROBES: dict[int, int] = {}
"""Thread -> number of open probes in it."""

MOST_SHAPES = 8
"""Shapes of the input of which a probe keeps one, to follow the axes later."""


@whole
class Probe:
    """Record every call of the selected layers of a model while a `with` block runs it.

    Nothing of the model is replaced: forward hooks are added on entry and removed on exit, also after an error. Values
    are detached unless `graph` is set. Edits run first, and their results are recorded; hooks that the user registered
    before run before both. Calls made while backward recomputes a checkpointed block are not recorded twice.
    Compiled modules run eagerly inside the block, since compiled code skips hooks.

    Args:
        model: any module; it runs in its current mode and grad mode.
        layers: which layers to record (see `Selection`); None for all, an empty tuple for none (edits only). Of a layer
            with named tensors (`"rnn/h_n"`) only these are recorded, as a tensor or a dict.
        keep: `"clone"` (default) copies, so that later in-place operations cannot change what was recorded;
            `"reference"` keeps the tensors themselves, and reading one that was overwritten raises; `"cpu"` copies
            to main memory. A mapping from path, or call (`"rnn#2"`), to one of these sets it, `"reference"` for all
            others; the arguments of a layer are copied if one of its calls is.
        inputs: whether to record the arguments of each call as well, or a function of `(args, kwargs)` to record.
        graph: keep the tensors themselves, in the autograd graph; with `keep="clone"` the rest of the model continues
            with a copy, so that gradients with respect to recorded tensors exist and nothing overwrites them.
        timing: record the seconds of each call.
        reduce: applied to each output inside the hook; only its result is kept.
        gradients: keep the gradient of each output once the user calls backward: `call.gradient`.
        stop: end the model's run, and the `with` block, when every selected layer (or call, as in `"rnn#2"`) has
            returned once; see `record.stopped`. Later calls of those layers are then not made.
        edits: layer selection -> a function of the layer's output that returns the new output, a `Change` (see
            `layerlens.edits`), or a list of them that follow each other.
        arguments: the same for the arguments of layers, `(args, kwargs)`. Of several tensors a `Change` needs a
            name: `"attn/0/1"` for the second positional one, `"attn/1/mask"` for a keyword.
        followed: returns the axes of the run, for the record and for edits that name units, positions, samples or
            heads; None to follow those of each call of the model.

    Raises:
        LayerNotFound: when a selection matches no layer.
        InputError: when an edit is made inside of a checkpointed block.
        OptionError: when `keep` is unknown or `"cpu"` under `graph`, when two edits name one layer and call, when an
            edit returns None for an output that is not None, or when there is nothing to stop after.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with Probe(net, nn.ReLU) as record:
        ...     _ = net(torch.ones(1, 2))
        >>> record["1"].shape
        torch.Size([1, 3])
    """

    @public
    def __init__(
        self,
        model: nn.Module,
        layers: Selection = None,
        *,
        keep: Keep | Mapping[str, Keep] = "clone",
        inputs: bool | Callable[[Any], Any] = False,
        graph: bool = False,
        timing: bool = False,
        reduce: Callable[[Any], Any] | None = None,
        gradients: bool = False,
        stop: bool = False,
        edits: Edits | None = None,
        arguments: Edits | None = None,
        followed: Callable[..., Followed] | None = None,
    ) -> None:
        for policy in set(keep.values()) if isinstance(keep, Mapping) else (keep,):
            choose("keep policy", policy, ("reference", "clone", "cpu"))
            if graph and policy == "cpu":
                raise OptionError("keep='cpu' takes tensors out of the graph; with graph=True keep 'clone'.")
        self._model, self._layers = model, Layers(model)
        found = {} if isinstance(layers, tuple) and not layers else self._layers.found(layers)
        self._calls: dict[LayerPath, Calls] = {path: calls for path, (calls, _, _) in found.items()}
        self._tensors: dict[LayerPath, Names] = {path: tensors for path, (_, tensors, _) in found.items()}
        self._edits = (
            MadeEdits(model, self._layers, edits or {}, arguments or {}, followed) if edits or arguments else None
        )
        if stop and not self._calls:
            raise OptionError("stop=True ends the run after the last selected layer; no layer is selected.")
        self._pending = {(path, n) for path, calls in self._calls.items() for n in calls or {0}} if stop else set()
        self._gradients = gradients
        self._inputs, self._graph, self._timing, self._reduce = inputs, graph, timing, reduce
        self._keep, self._own = (keep, {}) if isinstance(keep, str) else ("reference", _by_call(keep, self._layers))
        self._handles: list[RemovableHandle] = []
        self._stack = contextlib.ExitStack()
        self._owner = get_ident()
        self.record = Record(list(self._calls), self._layers.aliases)
        self._follows = followed is None
        self._shapes: dict[Hashable, Inputs] = {}
        self.record.run = None if followed is None else Run(followed)

    def __enter__(self) -> Record:
        if self._handles:
            raise OptionError("this probe is already attached; make a second Probe to nest them.")
        self._owner, self._earlier = get_ident(), self.record.count
        _OPEN_PROBES[self._owner] = _OPEN_PROBES.get(self._owner, 0) + 1
        self._stack.callback(_close, self._owner)
        try:
            if any_compiled(self._layers.values()):
                self._stack.enter_context(as_written(self._model))
            if self._edits is not None:
                self._stack.enter_context(self._edits.attached(functools.partial(_elsewhere, self._owner)))
            if self._calls and self._follows:
                note = self._model.register_forward_pre_hook(self._note_run, with_kwargs=True, prepend=True)
                self._handles.append(note)
            more = self._inputs or self._timing or self._gradients or self._pending or self._graph or self._reduce
            plain, modules = self._keep == "reference" and not more, dict(self._layers.items())
            for path, calls in self._calls.items():
                whole = calls is None and self._tensors[path] is None and path not in self._own
                self._attach(path, modules[path], only_references=plain and whole)
        except BaseException:
            self._detach()
            raise
        return self.record

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        self._detach()
        edited = [] if self._edits is None else self._edits.paths
        _mark_parts(self._model, self.record, edited, reduced=self._reduce is not None)
        self.record.unedited = () if self._edits is None else self._edits.not_made
        if isinstance(error, _Stop) and error.args == (id(self),):
            self.record.stopped = True
            return True
        if kind is not None:
            self.record.partial = True
        return False

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.record.entered.clear()  # calls that an error, or `stop`, ended
        self._stack.close()

    def _note_run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the input of a run, one for each shape, so that its axes can be followed when they are asked for."""
        if _elsewhere(self._owner):
            return
        given = Inputs(args, kwargs)
        key = tuple((name, tuple(sizes_of(tensor)), tensor.dtype) for name, tensor in given.tensors().items())
        if key not in self._shapes and len(self._shapes) < MOST_SHAPES:
            self._shapes[key] = given.map(torch.Tensor.detach)
        known, later = self._shapes.get(key), bool(self.record.count)
        if known is None:
            self.record.run = None
        else:
            until = frozenset(self._pending)
            self.record.run = Run(functools.partial(followed_axes, self._model, known, until=until), later=later)

    def _attach(self, path: LayerPath, module: nn.Module, *, only_references: bool) -> None:
        """Attach the hooks of a layer; `only_references` keeps references to the outputs of all its calls."""
        counter = itertools.count(len(self.record.calls(path)) if self._earlier else 0)
        if only_references:
            note = _reference_hook(path, self.record, counter, lambda: self._hooks(path, module, counter)[1])
            self._handles.append(module.register_forward_hook(note))
            return
        before, after = self._hooks(path, module, counter)
        if self._inputs or self._timing:
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after))

    def _arguments(self, given: object, keep: str) -> Any:
        if callable(self._inputs):
            return self._inputs(given)
        return stored(given, keep, self._graph) if self._inputs else None

    def _hooks(self, path: LayerPath, module: nn.Module, counter: Iterator[int]) -> tuple[Any, Any]:
        """The hooks that run before and after the calls of a layer; `counter` numbers the calls."""
        kind, wanted, tensors, own = (
            type(module).__name__,
            self._calls[path],
            self._tensors[path],
            self._own.get(path, {}),
        )
        record, reduce, graph = self.record, self._reduce, self._graph
        of_layer = own.get(None, self._keep)
        entered: list[tuple[Any, Stored, float]] = []
        record.entered.append(entered)

        def held(value: object, keep: str) -> Stored:
            return versions(value) if graph or keep == "reference" else ()

        def before(module: nn.Module, args: object, kwargs: object) -> None:
            if not _elsewhere(self._owner):
                keep = next(iter(own.values()), of_layer)
                arguments = self._arguments((args, kwargs), keep)
                entered.append((arguments, held(arguments, keep), time.perf_counter()))

        def after(module: nn.Module, args: object, output: object) -> Any:
            if _elsewhere(self._owner):
                return None
            arguments, held_arguments, start = entered.pop() if entered else (None, (), None)
            index = next(counter)
            if wanted is not None and index not in wanted:
                return None
            keep = own.get(index, of_layer)
            seconds = None if start is None else time.perf_counter() - start
            seen = output if torch._C._functorch.peek_interpreter_stack() is None else map_tensors(output, unmapped)
            found = tensors_of(module, seen) if reduce is None or self._gradients else ByTensor[torch.Tensor]({})
            chosen: Any = seen
            if tensors is not None:
                found = changeable(module, seen, tensors, path)
                chosen = next(iter(found.values())) if len(found) == 1 else dict(found)
            value = stored(chosen if reduce is None else reduce(chosen), keep, graph)
            axes = REDUCED if reduce is not None else None if record.run is None else record.run.of(path, index)
            about = (path, index, record.count, kind, axes)
            gradients = Gradients(found) if self._gradients else None
            names = () if reduce is not None or list(found) == [""] else tuple(found)
            record.add(Call(*about, value, arguments, seconds, held(value, keep), held_arguments, gradients, names))
            if self._pending:
                self._pending.discard((path, index))
                if not self._pending:
                    raise _Stop(id(self))
            return map_tensors(output, torch.clone) if graph and keep == "clone" else None

        return before, after


def _by_call(keep: Mapping[str, Keep], layers: Container[LayerPath]) -> dict[LayerPath, dict[int | None, Keep]]:
    """Return path -> call -> how it is kept; None for the other calls of the layer."""
    found: dict[LayerPath, dict[int | None, Keep]] = {}
    for name, policy in keep.items():
        path, _, call = (name, "", "") if name in layers else name.rpartition("#")
        found.setdefault(path, {})[int(call) if call else None] = policy
    return found


def _close(thread: int) -> None:
    _OPEN_PROBES[thread] -= 1
    if not _OPEN_PROBES[thread]:
        del _OPEN_PROBES[thread]


def _elsewhere(owner: int) -> bool:
    """Whether a call is made again, or belongs to the probe of another thread; one without may be of the model."""
    thread = get_ident()
    return _graph_task() != -1 or tracing() or (thread != owner and thread in _OPEN_PROBES)


def _reference_hook(
    path: LayerPath, record: Record, counter: Iterator[int], full_hook: Callable[[], Any]
) -> Callable[[nn.Module, object, object], Any]:
    """Return a hook that notes an output as fast as possible: the record makes the `Call` on first use.

    Args:
        path: path of the layer.
        record: where to note.
        counter: numbers the calls.
        full_hook: returns the hook for outputs other than one simple tensor.
    """
    owner, pending, after = get_ident(), record.pending, None

    def note(module: nn.Module, args: object, output: object) -> Any:
        nonlocal after
        if (
            type(output) is torch.Tensor
            and not output.requires_grad
            and not output.is_inference()
            and not torch._C._functorch.is_batchedtensor(output)
        ):
            if not _elsewhere(owner):
                pending.append((path, next(counter), module, output, output._version, record.run))
            return None
        if after is None:  # nested, of a subclass, or with a graph
            after = full_hook()
        return after(module, args, output)

    return note


class _Stop(BaseException):
    """Ends a forward pass from inside a hook; an `except Exception` in the model does not catch it."""


def recomputing() -> bool:
    """Return whether layers are called again: by a checkpointed block in a backward pass, or to follow axes."""
    return bool(_graph_task() != -1) or tracing()


def stored(value: object, keep: str, graph: bool) -> Any:
    """Return the value as `keep` says: references, copies, or copies in main memory; with `graph` the value itself."""
    if graph:
        return value
    if keep == "reference":
        # inference tensors do not count writes, so overwriting one would go unnoticed: copy those
        return map_tensors(value, lambda tensor: tensor.detach().clone() if tensor.is_inference() else tensor.detach())
    if keep == "cpu":
        return map_tensors(value, lambda tensor: tensor.detach().to("cpu", copy=True))
    return map_tensors(value, lambda tensor: tensor.detach().clone())


def versions(value: object) -> Stored:
    """Return each tensor inside with its version, the number of writes to it."""
    return tuple((tensor, version(tensor)) for _, tensor in named_tensors(value))


def _mark_parts(model: nn.Module, record: Record, edited: Container[LayerPath], *, reduced: bool) -> None:
    """Note and warn which layers of a tensor parallel model were recorded, or edited, in this process's part only.

    Args:
        model: the probed model.
        record: record of the probe; its `parts` are set.
        edited: layers that the probe edited.
        reduced: whether the record holds reduced outputs.
    """
    known = parts(model) if dist.is_available() and dist.is_initialized() else {}
    for path, sizes in known.items():
        calls = record.calls(path) if path in record.selected else []
        shown = [None if reduced else first_tensor(call.value) for call in calls]
        partial = any(sizes is None or value is None or value.shape[-1] == sizes[1] for value in shown)
        if path in edited or partial:
            record.parts = (*record.parts, path)
    if record.parts:
        named = ", ".join(map(repr, record.parts[:4])) + ", ..." * (len(record.parts) > 4)
        warn(
            f"the model is tensor parallel: the outputs of layers {named} (record.parts has all) are the part of this "
            "process, such as its columns, and units are numbered within it.",
        )
