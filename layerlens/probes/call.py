"""One call of one layer: its output, its arguments, and the gradient of its output."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeAlias

import torch
from torch.autograd.graph import get_gradient_edge

from layerlens.errors import OverwrittenError, RecordError
from layerlens.model.layers import LayerPath
from layerlens.model.trees import describe, named_tensors, version

Stored: TypeAlias = tuple[tuple[torch.Tensor, int], ...]
"""Tensors kept by reference, each with its version when it was recorded."""


class Gradients:
    """Gradients of the tensors that one call returned, added up over backward passes as in `.grad`.

    Args:
        output: output of the call, possibly nested.
    """

    def __init__(self, output: object) -> None:
        self.found: dict[str, torch.Tensor | None] = {}
        self.edges: list[Any] = []
        for name, tensor in named_tensors(output):
            if tensor.requires_grad:
                self.found[name] = None
                self.edges.append(get_gradient_edge(tensor))
                tensor.register_hook(functools.partial(self._add, name))  # type: ignore[no-untyped-call]

    def _add(self, name: str, gradient: torch.Tensor) -> None:
        before = self.found[name]
        self.found[name] = gradient.detach().clone() if before is None else before + gradient.detach()


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of one layer.

    Attributes:
        layer: path of the layer.
        index: 0 for the layer's first call in the run, 1 for the second, ...
        order: position of the call's end among all recorded calls of the run.
        type: name of the module's class.
        axes: names of the output's axes, for example `("batch", "channel", "height", "width")`; None if unknown.
        output: output of the layer, nested as it was.
        inputs: positional and keyword arguments as `(args, kwargs)` if they were asked for, else None.
        seconds: time from entry to exit of the call, children included, if timing was asked for, else None.
    """

    layer: LayerPath
    index: int
    order: int
    type: str
    axes: tuple[str, ...] | None
    value: Any = dataclasses.field(repr=False)
    arguments: Any = dataclasses.field(default=None, repr=False)
    seconds: float | None = None
    stored: Stored = dataclasses.field(default=(), repr=False)
    stored_inputs: Stored = dataclasses.field(default=(), repr=False)
    gradients: Gradients | None = dataclasses.field(default=None, repr=False)

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
        """The gradient of the output: a tensor like it, or a dict by dotted name if it is nested.

        Raises:
            RecordError: when none was asked for, no backward pass has run, or the output requires no gradient.
        """
        if self.gradients is None:
            raise RecordError("gradients were not recorded: Probe(gradients=True), or capture(gradients=True).")
        found = {name: gradient for name, gradient in self.gradients.found.items() if gradient is not None}
        if not found:
            why = "no backward pass has run" if self.gradients.found else "it was computed without gradients"
            raise RecordError(f"layer {self.layer!r}, call {self.index}, has no gradient: {why}.")
        return found[""] if list(found) == [""] else found

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
