"""Follow the axes of the input through one forward pass: what every axis of every tensor is."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules import module as modules
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from layerlens.errors import AxesUnknown, InputError, RecordError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.layers import LayerPath
from layerlens.model.tensors import tensor_path, tensors_of
from layerlens.model.trees import named_tensors, unmapped

from .call_site import CallSite
from .layout import roles
from .provenance.axis import Axes, Axis, Part, Source, new
from .provenance.pointwise import same
from .provenance.reshaped import Reshapes
from .provenance.roles import input_axes, name_sources, named_axis
from .provenance.table import Operation, constant, kind_of, sizes_of, unknown
from .steps import OfTensors, Steps
from .tracing import traced

AxisNames: TypeAlias = "Mapping[str, Sequence[str]]"
"""Input tensor, layer, or `layer/tensor` -> names of its axes."""

Until: TypeAlias = frozenset[tuple[LayerPath, int]]
AxesOf: TypeAlias = Callable[[object], "Axes | None"]

_FILLED = "it was filled entry by entry"


class Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keep the axes of every tensor that depends on a named one while a `with` block runs operations.

    Attributes:
        unknown: operation -> what could not be followed.
        steps: entries of axes that were read one by one.
        layer: path of the innermost running layer.
        left: how numbers of a followed tensor left torch; `""` if none did.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._axes: OfTensors[Axes] = OfTensors()
        self.steps = Steps()
        self._read = self.steps.tensors.values
        self._filled: OfTensors[list[tuple[int, float]]] = OfTensors()
        self._reshapes = Reshapes()
        self.unknown: dict[str, str] = {}
        self.layer: LayerPath = ""
        self.left = ""

    def axes(self, tensor: object) -> Axes | None:
        """Return the axes of a tensor; None for one that does not depend on the input."""
        return self._axes.get(tensor)

    def set(self, tensor: torch.Tensor, axes: Axes) -> None:
        """Set the axes of a tensor."""
        self._axes[tensor] = axes

    def of_samples(self, tensor: torch.Tensor) -> bool:
        """Return whether entries of the axis of samples were read one by one for a tensor."""
        return any(source.role == "batch" for source in self.steps.positions(unmapped(tensor)))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: torch would wrap `__torch_dispatch__`, which costs as much as following an operation."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        self.note(function, args, kwargs, out)
        return out

    def note(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Note the axes of what an operation returned."""
        given = self._given(args)
        if kwargs:
            given += self._given(kwargs.values())
        if not given:
            name = kind_of(function).name
            if name == "aten.embedding":  # of positions, which the model counts itself
                self._axes[out] = (*(new("extra", size) for size in out.shape[:-1]), new("unit", out.shape[-1]))
            elif self.left and name == "aten.lift_fresh":  # made of numbers from outside
                self._axes[out] = unknown(out.shape, self.unknown.setdefault("aten.lift_fresh", self.left))
            return
        kind = kind_of(function)
        if kind.name == "aten._local_scalar_dense" and ("way" in kwargs or args[0].is_floating_point()):
            where = f"layer {self.layer!r}" if self.layer else "the model itself"
            how = f"numbers left torch by {kwargs.get('way', 'item')}() in {where}"
            self.left = self.left or f"{how}; tensors made of them are not followed"
        if kind.fresh:
            return
        alone = isinstance(out, torch.Tensor)
        tensors = [out] if alone else list(out) if isinstance(out, (tuple, list)) else []
        if not alone and not any(isinstance(part, torch.Tensor) for part in tensors):
            return
        name, row, first = kind.name, kind.row, tensors[0]
        read = self._read and any(id(tensor) in self._read for tensor, _ in given)
        if row is same and not read and _alike(given, first) and not (kind.writes and first._is_view()):
            for part in tensors:  # further outputs are statistics without places
                if part is first or (part is not None and part.shape == first.shape):
                    self._axes[part] = given[0][1]
            return
        operation, why = Operation(kind, args, kwargs, out, self.axes, self.layer, self._reshapes), ""
        found: Any = None
        if row is None:
            why = f"{name} is not followed"
        else:
            try:
                found = row(operation)
            except (LookupError, TypeError, ValueError, AttributeError, AssertionError, StopIteration) as error:
                why = f"{name} could not be followed ({type(error).__name__}: {error})"
        if kind.picks or read:
            if isinstance(found, tuple) and len(found) == len(operation.shape):
                found = self.steps.joined(operation, found)
            self.steps.note(operation, [part for part in tensors if isinstance(part, torch.Tensor)])
        each = found if isinstance(found, list) else [found] * len(tensors)
        for tensor, axes in zip(tensors, each, strict=False):
            if not isinstance(tensor, torch.Tensor):
                continue
            if axes is None or not _fit(axes, tensor):
                sizes = sizes_of(tensor)
                if axes is not None:
                    why = f"{name} gave {[axis.size for axis in axes]} for {tuple(sizes)}"
                elif found is not None and isinstance(found, list):
                    continue
                reason = why or f"{name} is not followed here"
                self.unknown.setdefault(name, reason)
                axes = unknown(sizes, reason)
            self._axes[tensor] = axes
            base = tensor._base if kind.writes else None
            if base is not None and tensor.shape == base.shape:
                self._axes[base] = axes
            elif base is not None and (self._axes.get(base) is None or self._filled.get(base) is not None):
                self._written(tensor, base, axes)

    def _given(self, values: Iterable[Any]) -> list[tuple[torch.Tensor, Axes]]:
        """The tensors among arguments that depend on the input, and their axes."""
        found: list[tuple[torch.Tensor, Axes]] = []
        known = self._axes.values
        for value in values:
            kept = known.get(id(value))
            if kept is not None and isinstance(value, torch.Tensor) and kept[0]() is value:
                found.append((value, kept[1]))
            elif isinstance(value, (list, tuple)):
                found += self._given(value)
        return found

    def _written(self, view: torch.Tensor, base: torch.Tensor, axes: Axes) -> None:
        """Note the axes of a constant tensor into which a view of it was written."""
        found: list[Axis] = []
        left = list(zip(view.stride(), axes, strict=True))
        shift, alone = view.storage_offset() - base.storage_offset(), base.ndim == view.ndim + 1
        for size, stride in zip(base.shape, base.stride(), strict=True):
            start, shift = (shift // stride, shift % stride) if stride else (0, shift)
            axis = next((axis for step, axis in left if step == stride and axis.size > 1), None)
            part = None if axis is None else axis.part
            if axis is not None and axis.size == size:
                found.append(axis)
            elif part is not None:
                offset = part.offset - start * part.stride
                found.append(Axis((part._replace(size=size, offset=offset),)))
            elif size == 1:
                here = [axis for _, axis in left if axis.size == 1 and axis.factors]
                only = (Axis((Part(source, 1),)) for source in self.steps.positions(view) if source.size == 1)
                found.append(here[0] if here else next(only, Axis()) if alone else Axis())
            else:
                found.append(self._filled_axis(view, base, size, start) if alone else new("unknown", size, _FILLED))
        self._axes[base] = tuple(found)

    def _filled_axis(self, view: torch.Tensor, base: torch.Tensor, size: int, start: int) -> Axis:
        """The axis along which a constant tensor is filled, known from the entries that were read for its own."""
        for source, position in self.steps.positions(view).items():
            places = [*(self._filled.get(base) or ()), (start, position)]
            self._filled[base] = places
            (at, first), (end, last) = places[0], places[-1]
            stride = (last - first) / (end - at) if end != at else 0.0
            if stride and all(abs(first + (one - at) * stride - there) < 1e-6 for one, there in places):
                return Axis((Part(source, size, stride, first - at * stride),))
        return new("unknown", size, _FILLED)


def _fit(axes: Axes, tensor: torch.Tensor) -> bool:
    """Whether axes have the sizes of a tensor."""
    return tensor.is_nested or [axis.size for axis in axes] == list(tensor.shape)


def _alike(given: list[tuple[torch.Tensor, Axes]], out: object) -> bool:
    """Whether all arguments have the same axes, and the output has their sizes."""
    first = given[0][1]
    if not isinstance(out, torch.Tensor) or (len(given) > 1 and any(axes is not first for _, axes in given)):
        return False
    return not out.is_nested and _fit(first, out)


class _Enough(BaseException):
    """Ends a run whose wanted calls have returned."""


class _Calls:
    """Global hooks that keep the axes of what every layer of a model took and returned."""

    def __init__(
        self, model: nn.Module, follow: Follow, names: AxisNames, said: Callable[..., Axes], until: Until
    ) -> None:
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._follow, self._names, self._said = follow, names, said
        self._count: dict[LayerPath, int] = {}
        self._missing = set(until)
        self.found: list[CallSite] = []
        self._entered: list[tuple[nn.Module, LayerPath, dict[str, Axes]]] = []

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the hooks."""
        handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, with_kwargs=True, always_call=False),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
                modules._global_forward_hooks_with_kwargs.pop(handle.id, None)  # torch leaves the note behind

    def _axes(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, Axes]:
        """The axes of every tensor; those of one that does not depend on the input are extra entries."""
        return {
            name: self._follow.axes(part) or constant(sizes_of(part))
            for name, part in ((name, unmapped(tensor)) for name, tensor in tensors)
            if part.layout is torch.strided or part.is_nested
        }

    def outputs(self, module: nn.Module, output: object) -> dict[str, Axes]:
        """Return the axes of every tensor of an output, by name."""
        return self._axes([("", output)] if isinstance(output, torch.Tensor) else tensors_of(module, output).items())

    def _enter(self, module: nn.Module, args: object) -> None:
        path = self._paths.get(id(module))
        if path is not None:
            self._follow.layer = path
            self._entered.append((module, path, self._axes(named_tensors(args))))

    def _leave(self, module: nn.Module, args: object, kwargs: object, output: object) -> None:
        path = self._paths.get(id(module))
        if path is None:
            return
        given: dict[str, Axes] = {}
        while self._entered:
            entered, _, given = self._entered.pop()
            if entered is module:
                break
        self._follow.layer = self._entered[-1][1] if self._entered else ""
        index = self._count.get(path, 0)
        self._count[path] = index + 1
        for name, tensor in tensors_of(module, output).items() if self._names else ():
            wanted = self._names.get(tensor_path(path, name)) or self._names.get(path)
            if wanted is not None:
                self._follow.set(tensor, self._said(path, wanted, tensor))
        if kwargs:
            given.update(self._axes(named_tensors(kwargs)))
        found, tensors = self.outputs(module, output), tensors_of(module, output)
        names = list(found) if len(found) == 1 else [name for name in found if tensors[name].is_floating_point()]
        alone = frozenset(
            name
            for name, axes in found.items()
            if "batch" not in roles(axes) and self._follow.of_samples(tensors[name])
        )
        self.found.append(CallSite(path, index, found, given, names[0] if len(names) == 1 else "", alone))
        if (path, index) in self._missing:
            self._missing.remove((path, index))
            if not self._missing:
                raise _Enough


@dataclasses.dataclass(frozen=True)
class Followed:
    """The axes of one forward pass.

    Attributes:
        inputs: name of each input tensor -> its axes.
        calls: the calls of all layers, in the order in which they ended.
        output: name of each tensor that the model returned -> its axes.
        unknown: operation -> what could not be followed.
    """

    inputs: Mapping[str, Axes]
    calls: tuple[CallSite, ...]
    output: Mapping[str, Axes]
    unknown: Mapping[str, str]

    def site(self, path: LayerPath, index: int = 0) -> CallSite:
        """Return one call of one layer.

        Raises:
            AxesUnknown: when the model could not be followed.
            RecordError: when there was no such call.
        """
        found = [site for site in self.calls if site.path == path]
        if not self.calls and self.unknown:
            raise AxesUnknown(f"the axes of layer {path!r} are not known: {'; '.join(self.unknown.values())}.")
        if index >= len(found):
            raise RecordError(f"layer {path!r} ran {len(found)} time(s); there is no call {index}.")
        return found[index]


def follow(
    model: nn.Module,
    inputs: Inputs,
    forward: Forward | None = None,
    names: AxisNames | None = None,
    *,
    batched: bool = True,
    until: Until = frozenset(),
    watch: Callable[[AxesOf], contextlib.AbstractContextManager[object]] | None = None,
) -> Followed:
    """Run a borrowed model once, without gradients, and follow the axes of its input.

    Args:
        model: the model, in the mode in which it is to run.
        inputs: its arguments.
        forward: called instead of the model.
        names: input tensor, layer, or `layer/tensor` -> names of its axes, where they are not known.
        batched: whether the first axis of the inputs counts samples; where a convolution sums over it, as in a list of
            pictures, it is found not to.
        until: calls of layers, by path and index, after which the run ends; none for the whole run.
        watch: given what returns the axes of a tensor, returns a context in which the model runs.

    Raises:
        InputError: when a name fits neither an input nor a layer, or the number of names is wrong.
    """
    names, mode, batch = names or {}, Follow(), Source("input", 0, "batch", role="batch")
    of_layers = {key: value for key, value in names.items() if key not in inputs.tensors()}
    places: dict[str, tuple[str, int]] = {}
    if of_layers:
        paths = dict(model.named_modules())
        for key in of_layers:
            if key not in paths and key.partition("/")[0] not in paths:
                known = ", ".join(map(repr, inputs.tensors()))
                raise InputError(f"axes names {key!r}, which is neither an input ({known}) nor a layer.")
        before = follow(model, inputs, forward, {key: value for key, value in names.items() if key not in of_layers})
        sources = [part.source for axes in before.inputs.values() for axis in axes for part in axis.parts()]
        places = {source.name: source.origin for source in sources if source.origin is not None}
    given: dict[str, Axes] = {}

    floating = [tensor for tensor in inputs.tensors().values() if tensor.is_floating_point() and tensor.ndim]
    lengths = (len(tensor) for tensor in floating or inputs.tensors().values() if tensor.ndim)
    samples = next(lengths, 0) if batched else None

    def run(borrowed: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for name, tensor in Inputs(args, kwargs).tensors().items():
            given[name] = input_axes(name, tensor, batch, samples)
            mode.set(tensor, given[name])
            number = name.rpartition(".")[2]
            if not batched and "." in name and number.isdigit():  # samples in a list
                batch.size = max(batch.size, int(number) + 1)
                mode.steps.read(tensor, batch, int(number))
        return borrowed(*args, **kwargs) if forward is None else forward(borrowed, *args, **kwargs)

    vars(run)["__wrapped__"] = type(model).forward if forward is None else forward  # its signature, for errors

    def said(path: LayerPath, wanted: Sequence[str], tensor: torch.Tensor) -> Axes:
        if len(wanted) != tensor.ndim:
            raise InputError(f"axes[{path!r}] has {len(wanted)} names for a tensor of shape {tuple(tensor.shape)}.")
        return tuple(named_axis(name, size, batch, given, places)
                     for name, size in zip(wanted, tensor.shape, strict=True))  # fmt: skip

    calls = _Calls(model, mode, of_layers, said, until)
    with traced(mode.note), torch.no_grad(), calls.attached(), mode:
        output: dict[str, Axes] = {}
        with watch(mode.axes) if watch is not None else contextlib.nullcontext(), contextlib.suppress(_Enough):
            output = calls.outputs(model, inputs.run(model, run))
    if batched and batch.size > 1 and "convolved" in batch.roles:
        return follow(model, inputs, forward, names, batched=False, until=until, watch=watch)
    name_sources(given, inputs.tensors(), {key: value for key, value in names.items() if key in given})
    return Followed(given, tuple(calls.found), output, mode.unknown)
