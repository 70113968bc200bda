"""The stack of blocks that most of a model is made of, and the model run from its end with other values."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.blocks import find_stack
from layerlens.analyzers.common.calls.measured_calls import MeasuredCall, copied_rows, edits_at, floating, survey
from layerlens.errors import LayerNotFound
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import seed_torch
from layerlens.model.layers import Selection
from layerlens.model.tensors import refuse_several
from layerlens.model.trees import map_tensors
from layerlens.probes.probe import Probe
from layerlens.targets.outputs import main_output

from .residual import first_floating


@dataclasses.dataclass
class Stream:
    """The values of a stack of blocks, and the model that continues from it.

    Attributes:
        model: the borrowed model.
        inputs: its inputs.
        forward: called instead of the model; None for the model.
        seed: seed of models that draw numbers.
        names: names of the rows: the input of the first block, and the output of each block.
        values: each `(batch, ...)`, or with the batch on another axis.
        axis: axis of the batch.
        output: output of the model.
        left_out: name of a layer -> why it has no row.
        site: the end of the stack.
    """

    model: nn.Module
    inputs: Inputs
    forward: Forward | None
    seed: int
    names: list[str]
    values: list[torch.Tensor]
    axis: int
    output: Any
    left_out: dict[str, str]
    site: MeasuredCall

    @classmethod
    def read(cls, model: nn.Module, inputs: Inputs, layers: Selection, forward: Forward | None, seed: int) -> Stream:
        """Run a borrowed model and keep what the layers returned.

        Raises:
            LayerNotFound: when no layers fit.
            SelectionError: when the model reads several tensors of one shape of a layer.
        """
        chosen = find_stack(model, inputs, forward, seed) if layers is None else layers
        found = survey(model, inputs, chosen, forward, seed=seed)
        last = found.sites[-1]
        axis = last.axes[last.main]
        if axis is None:
            raise LayerNotFound(f"the output of {last.name} has no batch axis, so it cannot be replaced.")
        kept: dict[str, torch.Tensor] = {}
        entered: list[torch.Tensor] = []

        def take(site: MeasuredCall, output: Any) -> Any:
            tensors = floating(output)
            alike = [site.names[one] for one in site.read if tensors[one].shape == tensors[site.main].shape]
            if len(alike) > 1:
                refuse_several(site.path, alike, "of one shape")
            kept[site.name] = tensors[site.main].detach().clone()
            return output

        def enter(given: object) -> None:
            tensor = first_floating(given)
            if tensor is not None and not entered:
                entered.append(tensor.detach().clone())

        seed_torch(seed)
        with (
            Probe(model, (), edits=edits_at(found.sites, take)),
            Probe(model, [found.sites[0].path], inputs=enter, reduce=lambda output: None),
        ):
            output = inputs.run(model, forward)
        shape = kept[last.name].shape
        names = [site.name for site in found.sites if kept[site.name].shape == shape]
        left_out = dict(found.left_out)
        left_out |= {
            site.name: f"its output {tuple(kept[site.name].shape)} has not the shape {tuple(shape)} of {last.name}"
            for site in found.sites
            if kept[site.name].shape != shape
        }
        values = [kept[name] for name in names]
        if entered and entered[0].shape == shape and found.sites[0].name == names[0]:
            names, values = [f"input of {names[0]}", *names], [entered[0], *values]
        return cls(model, inputs, forward, seed, names, values, axis, output, left_out, last)

    def read_on(self, values: list[torch.Tensor], copies: bool) -> torch.Tensor:
        """Return the model's main output for each of some values at the end of the stack, `(values * batch, ...)`.

        Args:
            values: values, joined along the batch axis.
            copies: whether the input is copied as often, for models that need it after the stack as well.
        """
        stacked = torch.cat(values, dim=self.axis)

        def replace_main(site: MeasuredCall, output: Any) -> Any:
            place = iter(range(1 << 62))
            return map_tensors(
                output,
                lambda tensor: stacked if tensor.is_floating_point() and next(place) == site.main else tensor,
            )

        inputs = self.inputs.rows(copied_rows(self.inputs.batch, len(values))) if copies else self.inputs
        seed_torch(self.seed)
        with Probe(self.model, (), edits=edits_at([self.site], replace_main)):
            return main_output(inputs.run(self.model, self.forward))
