"""The call of a layer whose output, or arguments, an edit changes."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from layerlens.axes.call_site import CallSite
from layerlens.axes.layout import Role, holding, named, only, roles
from layerlens.errors import AxesUnknown, OptionError
from layerlens.model.selection import Names
from layerlens.model.tensors import argument_key, tensor_path
from layerlens.model.trees import describe

_ROLES: dict[str, Role] = {"sample": "batch", "unit": "unit", "position": "place"}


@dataclasses.dataclass(frozen=True)
class Site:
    """The call of a layer whose output is changed.

    Attributes:
        path: path of the layer.
        call: number of the call, from 0.
        module: the layer.
        tensors: names of the tensors of its output that are changed; None for all.
        tensor: the one that is changed now, `""` if it is the only one.
        ragged: whether it is a nested tensor, NaN where a sample has ended.
        arguments: whether the arguments `(args, kwargs)` are changed instead of the output.
        known: the axes of the tensors of this call; None if they were not followed.
        first: the layer's first call in the run with its axes; None if this is it.
    """

    path: str
    call: int
    module: nn.Module
    tensors: Names = None
    tensor: str = ""
    ragged: bool = False
    arguments: bool = False
    known: CallSite | None = dataclasses.field(default=None, repr=False)
    first: CallSite | None = dataclasses.field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The name of the layer and the tensor, as in a selection."""
        return tensor_path(self.path, self.tensor)

    def call_site(self, tensor: torch.Tensor) -> tuple[CallSite, str]:
        """Return the followed call, and the name of a tensor in it.

        Raises:
            AxesUnknown: when it was not followed, or the tensor has another shape than it had then.
        """
        if self.known is None:
            raise AxesUnknown(
                f"the axes of {self.name!r} are not known, because they are followed when the model itself is called: "
                "use lens.run(x, edits=...), or call the model inside of the probe."
            )
        name = argument_key(self.tensor) if self.arguments else self.tensor
        sizes = tuple(axis.size for axis in self.known.seen(name, argument=self.arguments))
        if len(sizes) != tensor.ndim or (not self.ragged and sizes != tuple(tensor.shape)):
            raise AxesUnknown(
                f"{self.name!r} has shape {tuple(tensor.shape)}, and {sizes} when its axes were followed: the route of "
                "this model changes. Give mask=, a boolean tensor that broadcasts to it."
            )
        return self.known, name

    def axis(self, tensor: torch.Tensor, role: Role) -> int | None:
        """Return the only axis of a role, such as `"head"`; None if there is none, or several."""
        known, name = self.call_site(tensor)
        axes = known.seen(name, argument=self.arguments)
        found = holding(axes, role) if role == "unit" else []
        return found[0] if len(found) == 1 else only(axes, role)

    def axis_of(self, tensor: torch.Tensor, what: str) -> int:
        """Return the axis of samples, units or positions (`what`, without the s) of a tensor.

        Raises:
            AxesUnknown: when it is not known.
            OptionError: when it does not have exactly one.
        """
        axis = self.axis(tensor, _ROLES[what])
        if axis is not None:
            return axis
        known, name = self.call_site(tensor)
        axes = known.axes(name, argument=self.arguments)
        if self.first is not None and what == "position":  # a token that the model wrote is not a place of the input
            before = self.first.seen(name, argument=self.arguments)
            place = only(before, "place")
            if place is not None and len(before) == len(axes) and roles(axes)[place] in ("extra", "none"):
                return place
        of = {"position": "tokens or time steps"}.get(what, f"{what}s")
        count = "several axes" if _ROLES[what] in roles(axes) else "no axis"
        raise OptionError(
            f"{self.name!r}, {describe(tensor)}, has {count} of {of}, its axes are ({', '.join(named(axes))}): give "
            "mask=, a boolean tensor that broadcasts to it."
        )
