"""Which parameters belong to which layer, each counted once."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import nn

from layerlens.errors import LayerNotFound
from layerlens.model.layers import Layers, Selection

By = Literal["layer", "parameter"]


@dataclasses.dataclass(frozen=True)
class Owners:
    """Groups of parameters, one for each row of a result.

    Attributes:
        rows: layer, or name of a parameter -> the names of its parameters, as in `model.named_parameters()`.
        shared: name of a parameter -> its other names, where layers share it.
        left_out: layer -> why it has no row.
    """

    rows: dict[str, list[str]]
    shared: dict[str, list[str]]
    left_out: dict[str, str]

    @property
    def names(self) -> list[str]:
        """Of all parameters in the rows."""
        return [name for names in self.rows.values() for name in names]


def owners(model: nn.Module, layers: Selection, by: By) -> Owners:
    """Give each parameter to a row.

    With `layers=None` a parameter belongs to the module that holds it. Of selected layers each has all parameters
    below it, except those of a deeper one that is selected too. A parameter that layers share belongs to the first.

    Raises:
        LayerNotFound: when the selection matches no layer, or no layer with a floating-point parameter.
    """
    known = Layers(model)
    selected = set(known) if layers is None else set(known.select(layers))
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    rows: dict[str, list[str]] = {}
    shared, left_out = {}, {}
    for first, parameter in model.named_parameters():
        names = names_of[id(parameter)]
        row = next((owner for name in names if (owner := _owner(name, selected, known)) is not None), None)
        if row is None:
            continue
        if not parameter.is_floating_point():
            left_out[first] = f"it holds {str(parameter.dtype).removeprefix('torch.')}, not floating-point numbers"
            continue
        if by == "parameter":
            rows[first] = [first]
        else:
            rows.setdefault(row or "(model)", []).append(first)
        if len({known.canonical(name.rpartition(".")[0]) for name in names}) > 1:
            shared[first] = names[1:]
            for name in names[1:]:
                other = known.canonical(name.rpartition(".")[0]) or "(model)"
                if by == "layer" and other != row:
                    left_out.setdefault(other, f"{name} is {first}, counted there")
    if not rows:
        raise LayerNotFound("none of the selected layers holds a floating-point parameter. List all: lens.layers()")
    return Owners(rows, shared, {name: why for name, why in left_out.items() if name not in rows})


def _owner(name: str, selected: set[str], known: Layers) -> str | None:
    """The deepest selected layer around a parameter; None where there is none."""
    path = name.rpartition(".")[0]
    while True:
        canonical = known.canonical(path)
        if canonical in selected:
            return canonical
        if not path:
            return None
        path = path.rpartition(".")[0]
