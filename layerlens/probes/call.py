"""One call of one layer: its output, its arguments, and the gradient of its output."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch.autograd.graph import get_gradient_edge

from layerlens.axes.call_site import CallSite
from layerlens.axes.follow import Followed
from layerlens.axes.layout import layer_names
from layerlens.axes.provenance.axis import Axes
from layerlens.errors import AxesUnknown, OverwrittenError, RecordError
from layerlens.model.layers import LayerPath
from layerlens.model.tensors import ByTensor, only, tensor_path, tensors_of
from layerlens.model.trees import describe, named_tensors, padded, version

Stored: TypeAlias = tuple[tuple[torch.Tensor, int], ...]
"""Tensors kept by reference, each with its version when it was recorded."""


REDUCED = "reduce= made another value of what it returned"
"""Why a reduced value has no axes; its first one counts samples."""


class Run:
    """The axes of the calls of one run of a model.

    Args:
        follow: returns the axes of the run; `again=True` follows them again, if the route was another one.
        later: whether calls of an earlier run were recorded before.
    """

    def __init__(self, follow: Callable[..., Followed], *, later: bool = False) -> None:
        self._follow, self._later = follow, later
        self._first: dict[LayerPath, int] = {}

    def of(self, path: LayerPath, index: int) -> Callable[[], CallSite]:
        """Return what follows a call of a layer; `index` counts the calls of all runs."""
        first = self._first.setdefault(path, index) if self._later else 0
        return functools.partial(self._site, path, index - first)

    def _site(self, path: LayerPath, index: int) -> CallSite:
        try:
            return self._follow().site(path, index)
        except RecordError:
            try:
                return self._follow(again=True).site(path, index)
            except RecordError as error:
                raise AxesUnknown(f"the route of this model changes: when its axes were followed, {error}") from error


class Gradients:
    """Gradients of the tensors that one call returned, added up over backward passes as in `.grad`.

    Args:
        tensors: tensors of the output, by name.
    """

    def __init__(self, tensors: ByTensor[torch.Tensor]) -> None:
        self.found: dict[str, torch.Tensor | None] = {}
        self.positions = tensors.positions
        self.edges: list[Any] = []
        for name, tensor in tensors.items():
            if tensor.requires_grad:
                self.found[name] = None
                self.edges.append(get_gradient_edge(tensor))
                tensor.register_hook(functools.partial(_add, self.found, name))  # type: ignore[no-untyped-call]


def _add(found: dict[str, torch.Tensor | None], name: str, gradient: torch.Tensor) -> None:
    """Add a gradient; the graph holds this hook, which must not hold what holds the graph."""
    before = found[name]
    found[name] = gradient.detach().clone() if before is None else before + gradient.detach()


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of one layer.

    Attributes:
        layer: path of the layer.
        index: 0 for the layer's first call in the run, 1 for the second, ...
        order: position of the call's end among all recorded calls of the run.
        type: name of the module's class.
        followed: returns the call with its axes, which takes a run if this input was not followed before; or the reason
            why they are not known.
        output: output of the layer, nested as it was.
        inputs: positional and keyword arguments as `(args, kwargs)` if they were asked for, else None.
        names: names of the tensors in the output, in order; none if they are numbers and keys.
        seconds: time from entry to exit of the call, children included, if timing was asked for, else None.
    """

    layer: LayerPath
    index: int
    order: int
    type: str
    followed: Callable[[], CallSite] | str | None
    value: Any = dataclasses.field(repr=False)
    arguments: Any = dataclasses.field(default=None, repr=False)
    seconds: float | None = None
    stored: Stored = dataclasses.field(default=(), repr=False)
    stored_inputs: Stored = dataclasses.field(default=(), repr=False)
    gradients: Gradients | None = dataclasses.field(default=None, repr=False)
    names: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    @property
    def tensors(self) -> ByTensor[torch.Tensor]:
        """The tensors of the output by name: `h_n` of an LSTM; `""` for a single tensor.

        Raises:
            OverwrittenError: as `output` does.
        """
        self._check(self.stored, "output")
        return self._named()

    def _named(self) -> ByTensor[torch.Tensor]:
        found = tensors_of(None, self.value)
        if not self.names:
            return found
        positions = dict(zip(found, self.names, strict=True))
        return ByTensor(dict(zip(self.names, found.values(), strict=True)), positions)

    @property
    def site(self) -> CallSite:
        """The call with the axes of every tensor of its output, followed when they are first asked for.

        Raises:
            AxesUnknown: when they were not followed.
        """
        if callable(self.followed):
            return self.followed()
        raise AxesUnknown(
            f"the axes of layer {self.layer!r} are not known: {self.followed or 'the model itself was not called'}. "
            "They are followed in records of lens.capture(x), and of a Probe inside of which the model is called."
        )

    @property
    def axes(self) -> tuple[str, ...] | ByTensor[tuple[str, ...] | None] | None:
        """The names of the output's axes, such as `("batch", "channel", "height", "width")`; None if unknown.

        Of several tensors they are a dict by name. They are followed when they are first asked for.
        """
        tensors = self._named()
        found = {name: layer_names(axes) if (axes := self.axes_of(one)) else None for name, one in tensors.items()}
        return found[next(iter(found))] if isinstance(self.value, torch.Tensor) else ByTensor(found, tensors.positions)

    def axes_of(self, tensor: torch.Tensor) -> Axes | None:
        """Return the axes of one tensor of the output; None if they are not known."""
        try:
            site, name = self.site, self.name_of(tensor)
            site.batch_axis(tensor, name)
            return site.seen(name)
        except (AxesUnknown, RecordError):
            return None

    def name_of(self, tensor: torch.Tensor) -> str:
        """Return the name of one tensor of the output."""
        return next(name for name, part in self._named().items() if part is tensor)

    def single(self) -> tuple[str, torch.Tensor] | None:
        """Return the name and the values of the one tensor of the output; None if it has none.

        Where one of several tensors is of floating point, it is meant. A nested one is padded with 0. The name is `""`
        unless the output holds several, or the tensor was recorded by its name.

        Raises:
            SelectionError: when there are several; it lists them.
            OverwrittenError: as `output` does.
        """
        found = self.tensors
        floating = ByTensor({name: tensor for name, tensor in found.items() if tensor.is_floating_point()})
        if not found:
            return None
        name, tensor = only(floating or found, self.layer, "and one is needed here")
        return name if isinstance(self.value, torch.Tensor) else "", padded(tensor)

    @property
    def output(self) -> Any:
        """The output of the layer.

        Raises:
            OverwrittenError: when it was kept by reference and an operation has written into it since.
        """
        self._check(self.stored, "output")
        return self.value

    @property
    def inputs(self) -> Any:
        """The `(args, kwargs)` of the layer as they were on entry; None if inputs were not asked for.

        Raises:
            OverwrittenError: when they were kept by reference and an operation, perhaps the layer, wrote into them.
        """
        self._check(self.stored_inputs, "input")
        return self.arguments

    @property
    def gradient(self) -> Any:
        """The gradient of the output: a tensor like it, or a dict by name, as in `tensors`, if it is nested.

        Raises:
            RecordError: when none was asked for, no backward pass has run, or the output requires no gradient.
        """
        if self.gradients is None:
            raise RecordError("gradients were not recorded: Probe(gradients=True), or capture(gradients=True).")
        found = {name: gradient for name, gradient in self.gradients.found.items() if gradient is not None}
        if not found:
            why = "no backward pass has run" if self.gradients.found else "it was computed without gradients"
            raise RecordError(f"layer {self.layer!r}, call {self.index}, has no gradient: {why}.")
        return found[""] if list(found) == [""] else ByTensor(found, self.gradients.positions)

    @property
    def name(self) -> str:
        """The layer and the index, as a selection names the call: `"rnn#2"`."""
        return f"{self.layer}#{self.index}"

    @property
    def overwritten(self) -> bool:
        """Whether a tensor kept by reference was written in place since the call."""
        return _written((*self.stored, *self.stored_inputs))

    def _check(self, stored: Stored, what: str) -> None:
        if _written(stored):
            raise OverwrittenError(
                f"layer {self.layer!r}, call {self.index}: a later operation wrote into this {what} in place, so its "
                "value is lost. Capture with keep='clone' (or keep='auto' of lens.capture)."
            )

    def __repr__(self) -> str:
        return f"Call({self.layer!r} #{self.index}, {self.type}: {describe(self.value)})"


def _written(stored: Stored) -> bool:
    return any(version(tensor) != written for tensor, written in stored)


def batch_size(calls: Iterable[Call]) -> int:
    """Return the number of samples: the size that most calls agree on; in a tie the first one other than 1.

    Raises:
        RecordError: when no call has a tensor with a batch axis.
        AxesUnknown: when the axes of a call are not known.
    """
    sizes: Counter[int] = Counter()
    for call in calls:
        for _, tensor in named_tensors(call.output):
            axis = _sample_axis(call, tensor)
            if axis is not None:
                sizes[tensor.size(axis)] += 1
    if not sizes:
        raise RecordError(
            "this record holds no tensor with a batch axis: what its layers returned has no axis of the samples."
        )
    return max(sizes, key=lambda size: (sizes[size], size != 1))


def sample_axis(call: Call, tensor: torch.Tensor, batch: int) -> int | None:
    """Return the axis of samples; None for a tensor that all samples share, such as position embeddings.

    Raises:
        AxesUnknown: when the axes of the call are not known.
        RecordError: when the tensor has no axis of that many samples.
    """
    axis = _sample_axis(call, tensor)
    first, dims = axis or 0, 0 if tensor.is_nested else tensor.ndim
    if first < dims and tensor.shape[first] == batch:
        if axis is not None or torch.equal(tensor, tensor[:1].expand_as(tensor)):  # repeated for each sample
            return first
    elif first < dims and tensor.shape[first] == 1:
        return None
    key, what = tensor_path(call.layer, call.name_of(tensor)), f"has no axis of the {batch} samples"
    if axis is None and call.name_of(tensor) in call.site.alone:
        what = "is of one sample, in a list with a tensor for each"
    raise RecordError(
        f"layer {key!r}, call {call.index}: {describe(tensor)} {what}, so it cannot be taken apart by sample. "
        f"Capture without this layer, layers=lambda path, module: path != {call.layer!r}, or read it from record.calls."
    )


def _sample_axis(call: Call, tensor: torch.Tensor) -> int | None:
    if call.followed == REDUCED:
        return 0 if tensor.ndim else None
    return call.site.batch_axis(tensor, call.name_of(tensor))
