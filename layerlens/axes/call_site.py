"""One call of one layer, with the axes of every tensor that it took and returned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from layerlens.errors import AxesUnknown
from layerlens.model.layers import LayerPath
from layerlens.model.tensors import tensor_path

from .layout import Role, holding, named, only, plain_names, roles
from .provenance.axis import Axes


@dataclasses.dataclass(frozen=True)
class CallSite:
    """One call of one layer.

    Attributes:
        path: path of the layer.
        index: index of the call: 0 for the first call of the layer in the run.
        outputs: name of each tensor that the call returned (`""` for a single one) -> its axes.
        inputs: name of each tensor among the positional and keyword arguments -> its axes.
        main: name of the only tensor of floating point among the outputs; `""` if there are several.
        alone: names of the outputs without an axis of samples that were computed from single samples, as in a list with
            a tensor for each.
    """

    path: LayerPath
    index: int
    outputs: Mapping[str, Axes]
    inputs: Mapping[str, Axes]
    main: str = ""
    alone: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """`path`, or `path #1` for the second call."""
        return (self.path or "(model)") + (f" #{self.index}" if self.index else "")

    def axes(self, tensor: str = "", *, argument: bool = False) -> Axes:
        """Return the axes of one tensor that the call returned, or took with `argument`, all of them known.

        Raises:
            AxesUnknown: when an axis is unknown, or there is no such tensor; says how to name the axes.
        """
        found = self.seen(tensor, argument=argument)
        if all(axis.known for axis in found):
            return found
        why = next(part.source.why for axis in found for part in axis.parts() if part.source.kind == "unknown")
        raise self._unknown(tensor, found, f"are not known: {why}")

    def seen(self, tensor: str = "", *, argument: bool = False) -> Axes:
        """Return the same axes, some of them perhaps unknown; without a name those of the only tensor.

        Raises:
            AxesUnknown: when there is no such tensor.
        """
        among = self.inputs if argument else self.outputs
        if not tensor and not argument:
            tensor = self.main if tensor not in among else tensor
        if tensor in among:
            return among[tensor]
        names = ", ".join(map(repr, among)) or "none"
        raise AxesUnknown(
            f"layer {self.name!r} {'took' if argument else 'returned'} no tensor {tensor!r}; its tensors: {names}."
        )

    def axis(self, role: Role, tensor: str = "", *, argument: bool = False) -> int:
        """Return the number of the only axis of this role, such as `"unit"`, in one tensor that the call returned.

        Raises:
            AxesUnknown: when there is none, or several.
        """
        place = only(self.seen(tensor, argument=argument), role)
        if place is None:
            found = self.axes(tensor, argument=argument)
            count = "several are" if role in roles(found) else "none is"
            raise self._unknown(tensor, found, f"are ({', '.join(named(found))}): {count} a {role} axis")
        return place

    def batch_axis(self, tensor: torch.Tensor, name: str = "", *, argument: bool = False) -> int | None:
        """Return the axis of samples, perhaps counted together with windows, of a tensor that the call returned.

        Args:
            tensor: the tensor, or its gradient or relevance; it may hold another number of samples.
            name: its name; `""` for the only one.
            argument: whether the call took the tensor instead.

        Returns:
            None when all samples share the tensor: it does not depend on the input.

        Raises:
            AxesUnknown: when it is not known, or the tensor has another shape than when its axes were followed.
        """
        return self._holding("batch", tensor, name, argument)

    def unit_axis(self, tensor: torch.Tensor, name: str = "", *, argument: bool = False) -> int | None:
        """Return the axis of units, as `batch_axis`; None when there is none, so that there is a single unit.

        Raises:
            AxesUnknown: when it is not known, when there are several, when the tensor does not depend on the input, or
                has another number of units than when its axes were followed.
        """
        axis = self._holding("unit", tensor, name, argument)
        axes = self.seen(name, argument=argument)
        if axis is None and self.batch_axis(tensor, name, argument=argument) is None:
            raise self._unknown(name, axes, "do not come from the input")
        if axis is not None and tensor.shape[axis] != axes[axis].size:
            raise self._other(tensor, name, axes)
        return axis

    def _holding(self, wanted: Role, tensor: torch.Tensor, name: str, argument: bool) -> int | None:
        axes = self.seen(name, argument=argument)
        if len(axes) != tensor.ndim:
            raise self._other(tensor, name, axes)
        found = holding(axes, wanted)
        if not found:
            self.axes(name, argument=argument)
        if len(found) > 1:
            raise self._unknown(name, axes, f"are ({', '.join(named(axes))}): several are {wanted} axes")
        return found[0] if found else None

    def _other(self, tensor: torch.Tensor, name: str, axes: Axes) -> AxesUnknown:
        return AxesUnknown(
            f"layer {tensor_path(self.name, name)!r} returned {tuple(tensor.shape)}, and "
            f"{tuple(axis.size for axis in axes)} when its axes were followed: the route of this model changes, or the "
            "layer is edited. Choose another layer."
        )

    def names(self, name: str, tensor: torch.Tensor) -> tuple[str, ...] | None:
        """Return the names of the axes of a tensor that the call returned, as `plain_names` gives them.

        Returns:
            None when they are unknown, or the tensor has another number of axes than when they were followed.
        """
        axes = self.outputs.get(name or self.main)
        return None if axes is None or len(axes) != tensor.ndim else plain_names(axes)

    def _unknown(self, tensor: str, found: Axes, why: str) -> AxesUnknown:
        key = tensor_path(self.path, tensor)
        example = ("batch", "token", "unit") if len(found) == 3 else ("batch", "unit", "height", "width")[: len(found)]
        sizes = tuple(axis.size for axis in found)
        return AxesUnknown(
            f"layer {self.name!r} has a tensor of shape {sizes} whose axes {why}. Name them, such as "
            f"Lens(model, axes={{{key!r}: {example}}})."
        )
