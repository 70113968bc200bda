"""Probes: hooks that read, and edit, what layers return. The only file that registers hooks on modules."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from .axes import axes_of
from .borrow import is_compiled
from .errors import OptionError, choose
from .layers import LayerPath, Layers, Selection
from .nested import first_tensor, map_tensors, named_tensors, version
from .record import Call, Record, Stored

Keep = Literal["reference", "clone", "cpu"]
Edit = Callable[[Any], Any]


class Probe:
    """Record every call of the selected layers of a model while a `with` block runs it.

    Nothing of the model is replaced: forward hooks are added on entry and removed on exit, also after an error. Values
    are detached unless `graph` is set. Edits run first and what they return is recorded; hooks that the user
    registered before run before both. Calls made while backward recomputes a checkpointed block are not recorded twice.
    Compiled modules run eagerly inside the block, since compiled code skips hooks.

    Args:
        model: any module; it runs in the mode and grad mode that it is in.
        layers: which layers to record (see `Selection`); None for all, an empty tuple for none (edits only).
        keep: `"clone"` (default) copies, so that later in-place operations cannot change what was recorded;
            `"reference"` keeps the tensors themselves, and reading one that was overwritten raises; `"cpu"` copies
            to main memory. A mapping from path to one of these sets it by layer, others being `"reference"`.
        inputs: record the arguments of each call as well.
        graph: keep the tensors themselves, in the autograd graph; with `keep="clone"` the rest of the model goes on
            with a copy, so that gradients with respect to what was recorded exist and nothing overwrites it.
        timing: record the seconds of each call.
        reduce: applied to each output inside the hook; only what it returns is kept.
        edits: layer selection -> function of the layer's output that returns what the layer shall return instead.

    Raises:
        LayerNotFound: when a selection matches no layer.
        OptionError: when `keep` is unknown or `"cpu"` under `graph`, when two edits name one layer, or when an edit
            returns None for an output that is not None.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with Probe(net, nn.ReLU) as record:
        ...     _ = net(torch.ones(1, 2))
        >>> record["1"].shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Selection = None,
        *,
        keep: Keep | Mapping[LayerPath, Keep] = "clone",
        inputs: bool = False,
        graph: bool = False,
        timing: bool = False,
        reduce: Callable[[Any], Any] | None = None,
        edits: Mapping[Any, Edit] | None = None,
    ) -> None:
        for policy in keep.values() if isinstance(keep, Mapping) else (keep,):
            choose("keep policy", policy, ("reference", "clone", "cpu"))
            if graph and policy == "cpu":
                raise OptionError("keep='cpu' takes tensors out of the graph; with graph=True keep 'clone'.")
        self._model, self._layers = model, Layers(model)
        self._selected = [] if isinstance(layers, tuple) and not layers else self._layers.select(layers)
        self._edits: dict[LayerPath, Edit] = {}
        for selection, edit in (edits or {}).items():
            for path in self._layers.select(selection):
                if path in self._edits:
                    raise OptionError(f"two edits name layer {path!r}; merge them into one function.")
                self._edits[path] = edit
        self._keep, self._inputs, self._graph, self._timing, self._reduce = keep, inputs, graph, timing, reduce
        self._handles: list[RemovableHandle] = []
        self._stack = contextlib.ExitStack()
        self.record = Record(self._selected, self._layers.aliases)

    def __enter__(self) -> Record:
        if self._handles:
            raise OptionError("this probe is already attached; make a second Probe to nest them.")
        try:
            if is_compiled(self._model):
                self._stack.enter_context(torch.compiler.set_stance("force_eager"))
            for path, edit in self._edits.items():
                self._handles.append(self._layers[path].register_forward_hook(_edit_hook(path, edit)))
            for path in self._selected:
                self._attach(path, self._layers[path])
        except BaseException:
            self._detach()
            raise
        return self.record

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._detach()
        if kind is not None:
            self.record.partial = True

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stack.close()

    def _attach(self, path: LayerPath, module: nn.Module) -> None:
        keep = self._keep.get(path, "reference") if isinstance(self._keep, Mapping) else self._keep
        kind = type(module).__name__
        record, reduce, graph = self.record, self._reduce, self._graph
        entered: list[tuple[Any, Stored, float]] = []
        counter = itertools.count(len(record.calls(path)))

        def versions(value: Any) -> Stored:
            return _versions(value) if graph or keep == "reference" else ()

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not _recomputing():
                arguments = _stored((args, kwargs), keep, graph) if self._inputs else None
                entered.append((arguments, versions(arguments), time.perf_counter()))

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            if _recomputing():
                return None
            arguments, held_arguments, start = entered.pop() if entered else (None, (), None)
            seconds = None if start is None else time.perf_counter() - start
            main = first_tensor(output) if reduce is None else None
            axes = None if main is None else axes_of(module, main)
            value = _stored(output if reduce is None else reduce(output), keep, graph)
            place = (path, next(counter), record.count, kind, axes)
            record.add(Call(*place, value, arguments, seconds, versions(value), held_arguments))
            return map_tensors(output, torch.clone) if graph and keep == "clone" else None

        if self._inputs or self._timing:
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after))


class Spans:
    """Note, while a `with` block runs a model, which autograd nodes are made during which call of which layer.

    Two hooks for all modules of the process, not two for each of the model's: modules of other models pass unnoticed.

    Args:
        model: any module.

    Attributes:
        found: (first number, number after the last, path) of each call, in the order in which the calls ended.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with Spans(net) as spans:
        ...     _ = net(torch.ones(1, 2))
        >>> [path for _, _, path in spans.found]
        ['0', '1', '']
    """

    def __init__(self, model: nn.Module) -> None:
        self.found: list[tuple[int, int, LayerPath]] = []
        self._paths = {id(module): path for path, module in Layers(model).items()}
        self._starts: list[int] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Spans:
        self._handles.append(register_module_forward_pre_hook(self._enter))
        self._handles.append(register_module_forward_hook(self._leave))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if id(module) in self._paths:
            self._starts.append(nodes_made())

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in self._paths:
            self.found.append((self._starts.pop(), nodes_made(), self._paths[id(module)]))


def nodes_made() -> int:
    """The sequence number that the next autograd node of this thread will get."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


def _edit_hook(path: LayerPath, edit: Edit) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        edited = edit(output)
        if edited is None and output is not None:
            raise OptionError(f"the edit of layer {path!r} returned None; it must return the layer's new output.")
        return edited

    return hook


def _recomputing() -> bool:
    """Whether autograd is running a backward pass: a checkpointed block calls its layers again then."""
    return bool(torch._C._current_graph_task_id() != -1)


def _stored(value: Any, keep: str, graph: bool) -> Any:
    if graph:
        return value
    if keep == "reference":
        # inference tensors do not count writes, so an overwritten one could not be told: copy those
        return map_tensors(value, lambda tensor: tensor.detach().clone() if tensor.is_inference() else tensor.detach())
    if keep == "cpu":
        return map_tensors(value, lambda tensor: tensor.detach().to("cpu", copy=True))
    return map_tensors(value, lambda tensor: tensor.detach().clone())


def _versions(value: Any) -> Stored:
    return tuple((tensor, version(tensor)) for _, tensor in named_tensors(value))
