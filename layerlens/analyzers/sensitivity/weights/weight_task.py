"""What all measures of weights are given: the model, samples, and the parameters of each row of the result."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import nn

from layerlens.errors import LayerNotFound
from layerlens.inputs.inputs import Forward
from layerlens.model.layers import Layers, Selection

from .labeled_batches import LabeledSamples
from .likelihood import Kind


@dataclasses.dataclass(frozen=True)
class WeightTask:
    """What all measures of weights are given, see `weight_sensitivity`."""

    model: nn.Module
    samples: LabeledSamples
    owners: ParameterOwners
    likelihood: Kind
    null: bool
    seed: int
    progress: bool | None
    forward: Forward | None

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """The parameters of the rows, by name."""
        names = set(self.owners.names)
        return {name: tensor for name, tensor in self.model.named_parameters() if name in names}

    @property
    def counts(self) -> torch.Tensor:
        """The number of values in each row."""
        parameters = self.parameters
        return torch.tensor([sum(parameters[name].numel() for name in names) for names in self.owners.rows.values()])

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return the settings of the result."""
        return {
            **more,
            "seed": self.seed,
            "shared": {name: tuple(others) for name, others in self.owners.shared.items()},
            "left_out": dict(self.owners.left_out),
        }

    @property
    def shared_note(self) -> str:
        """A note on shared parameters, for the method of the result."""
        shared = [f"{name} with {', '.join(others)}" for name, others in self.owners.shared.items()]
        return f"; shared parameters counted once ({'; '.join(shared[:3])})" if shared else ""


By = Literal["layer", "parameter"]


@dataclasses.dataclass(frozen=True)
class ParameterOwners:
    """Groups of parameters, one for each row of a result.

    Attributes:
        rows: layer, or name of a parameter -> names of its parameters, as in `model.named_parameters()`.
        shared: name of a parameter -> its other names, where layers share it.
        left_out: layer -> why it has no row.
    """

    rows: dict[str, list[str]]
    shared: dict[str, list[str]]
    left_out: dict[str, str]

    @property
    def names(self) -> list[str]:
        """The names of all parameters in the rows."""
        return [name for names in self.rows.values() for name in names]


def parameter_owners(model: nn.Module, layers: Selection, by: By) -> ParameterOwners:
    """Assign each parameter to a row.

    With `layers=None` a parameter belongs to the module that holds it. Of selected layers each owns all parameters
    below it, except those of a deeper layer that is selected too. A parameter that layers share belongs to the first.

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
    return ParameterOwners(rows, shared, {name: why for name, why in left_out.items() if name not in rows})


def _owner(name: str, selected: set[str], known: Layers) -> str | None:
    """Return the deepest selected layer around a parameter, or None."""
    path = name.rpartition(".")[0]
    while True:
        canonical = known.canonical(path)
        if canonical in selected:
            return canonical
        if not path:
            return None
        path = path.rpartition(".")[0]
