"""Runs on stepped inputs, and how the layers respond."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from layerlens.analyzers.common.calls.measured_calls import (
    MeasuredCall,
    copied_rows,
    edits_at,
    grown_axis,
    row_norms,
)
from layerlens.analyzers.common.leaves.leaves import Leaf, find_leaves, substitute
from layerlens.analyzers.common.messages import NO_BATCH
from layerlens.analyzers.common.samples import Known, or_none, warn_of_influence
from layerlens.analyzers.common.statistics import nearly_equal
from layerlens.errors import InputError, LayerNotFound
from layerlens.model.borrowed import seed_torch
from layerlens.model.trees import named_tensors
from layerlens.probes.probe import Probe
from layerlens.progress import track

from .model_run import ModelRun

Values = dict[str, torch.Tensor]
"""One tensor per leaf."""


class Unavailable(Exception):
    """This route cannot run on the model."""


@dataclasses.dataclass
class Responses:
    """Responses of the layers by site; each list holds a tensor `(copies, batch)` per chunk of directions.

    Attributes:
        norms: ||J u||.
        sizes: ||h||.
        doubtful: sites whose responses are close to rounding.
        left_out: name of a site that ran and cannot be read -> why.
    """

    norms: dict[MeasuredCall, list[torch.Tensor]] = dataclasses.field(default_factory=dict)
    sizes: dict[MeasuredCall, list[torch.Tensor]] = dataclasses.field(default_factory=dict)
    doubtful: set[MeasuredCall] = dataclasses.field(default_factory=set)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, site: MeasuredCall, value: torch.Tensor, norm: torch.Tensor, batch: int) -> None:
        """Add one chunk: what the layer returned, and the norms of its response, `(copies * batch,)`."""
        size = row_norms(value, site.axes[site.main], len(norm))
        self.add_norms(site, norm.reshape(-1, batch), size.reshape(-1, batch))

    def add_norms(self, site: MeasuredCall, norms: torch.Tensor, sizes: torch.Tensor) -> None:
        """Add the norms of one chunk, `(copies, batch)` each."""
        if site.axes[site.main] is None and bool((norms != 0).any()):
            self.left_out[site.name] = NO_BATCH
        self.norms.setdefault(site, []).append(norms)
        self.sizes.setdefault(site, []).append(sizes)


@dataclasses.dataclass(frozen=True)
class SteppedRun:
    """Directions to step the input in, and where to read the response.

    Attributes:
        run: the model and its input.
        leaves: what is stepped, each `(batch, ...)`.
        label: label of the progress bar.
        directions: by leaf, `(draws, ...)`: the same directions u for all samples.
        sites: where to read.
        copies: number of directions run at once.
    """

    run: ModelRun
    leaves: Mapping[str, Leaf]
    label: str
    directions: Values = dataclasses.field(default_factory=dict)
    sites: list[MeasuredCall] = dataclasses.field(default_factory=list)
    copies: int = 1

    @property
    def name(self) -> str:
        """The class name of the model."""
        return type(self.run.model).__name__

    @property
    def start(self) -> Values:
        """Copies of the leaves, `(batch, ...)`; ordinary tensors also when the caller is in inference mode."""
        return {name: leaf.value.clone() for name, leaf in self.leaves.items()}

    def chunks(self) -> Iterator[tuple[Values, Values]]:
        """Yield leaves and directions for some draws at a time, each `(copies * batch, ...)`."""
        batch, start = self.run.batch, self.start
        for part in self.direction_chunks():
            copies = len(next(iter(part.values())))
            values = {name: value.repeat(copies, *[1] * (value.ndim - 1)) for name, value in start.items()}
            steps = {name: part[name].repeat_interleave(batch, dim=0) for name in start}
            yield values, steps

    def direction_chunks(self) -> Iterator[Values]:
        """Yield the directions of some draws at a time, `(copies, ...)`."""
        draws = torch.arange(len(next(iter(self.directions.values()))))
        for part in track(torch.split(draws, self.copies), self.label, enabled=self.run.progress):
            yield {name: steps[part] for name, steps in self.directions.items()}

    def together(self, copies: int) -> int:
        """Return how many copies of the batch may share a run: one where samples influence each other.

        A copy of which half of every sample is zero gives another output next to the batch as it is than alone.

        Warns:
            UserWarning: when they do.
        """
        if copies < 2:
            return 1
        start = self.start
        half = {name: value.flatten(1).clone() for name, value in start.items()}
        for value in half.values():
            value[:, value.shape[1] // 2 :] = 0
        changed = {name: value.reshape(start[name].shape) for name, value in half.items()}
        both = {name: torch.cat([value, changed[name]]) for name, value in start.items()}
        with torch.no_grad():
            alone = _by_position(self.evaluate(changed, lambda site, output: None, []))
            shared = or_none(lambda: _by_position(self.evaluate(both, lambda site, output: None, [])))
            other = dataclasses.replace(self, run=dataclasses.replace(self.run, seed=self.run.seed + 1))
            drawn = _by_position(other.evaluate(changed, lambda site, output: None, []))
        if shared is not None and all(_second(alone[name], shared[name]) for name in alone.keys() & shared.keys()):
            return copies
        if not all(nearly_equal(alone[name], drawn[name]) for name in alone.keys() & drawn.keys()):
            return copies  # the model draws other numbers for other rows
        warn_of_influence(self.run.batch, run=Known(self.run.model, self.run.inputs, self.run.forward))
        return 1

    def evaluate(
        self,
        values: Values,
        read: Callable[[MeasuredCall, Any], None],
        sites: list[MeasuredCall] | None = None,
        *,
        stop: bool = False,
    ) -> Any:
        """Run on `values`, `(rows, ...)` per leaf, and call `read(site, output)` at each site.

        With `stop` the run ends once each of the sites has returned.

        Returns:
            What the model returned; None when the run was stopped.
        """
        sites = self.sites if sites is None else sites
        rows = copied_rows(self.run.batch, len(next(iter(values.values()))) // self.run.batch)

        def read_only(site: MeasuredCall, output: Any) -> Any:
            read(site, output)
            return output

        inputs = self.run.inputs.rows(rows)
        inputs = inputs.replace({name: values[name] for name, leaf in self.leaves.items() if leaf.is_input})
        last = [f"{site.path}#{site.index}" for site in sites] if stop and all(site.path for site in sites) else ()
        seed_torch(self.run.seed)
        output = None
        with (
            Probe(
                self.run.model, (), edits=substitute(self.leaves, values)
            ),  # first, so that the sites see what it does
            Probe(self.run.model, (), edits=edits_at(sites, read_only)),
            Probe(self.run.model, last, stop=bool(last), reduce=lambda output: None),
        ):
            output = inputs.run(self.run.model, self.run.forward)
        return output


def _by_position(output: object) -> dict[str, torch.Tensor]:
    """Return the floating-point tensors of an output; a list with a tensor per sample is longer for more of them."""
    return {name: tensor for name, tensor in named_tensors(output) if tensor.is_floating_point()}


def _second(alone: torch.Tensor, shared: torch.Tensor) -> bool:
    """Return whether the second half of an output along the axis of the batch is what the batch gave alone."""
    axis = grown_axis(tuple(alone.shape), tuple(shared.shape))
    if axis is None:
        return alone.shape == shared.shape
    half = shared.chunk(2, dim=axis)[1]
    return half.shape == alone.shape and nearly_equal(half, alone)  # else two axes grew: samples are compared


def row_lengths(values: Values) -> torch.Tensor:
    """Return the Euclidean length of each row over all leaves together, `(rows,)`, float64."""
    return torch.stack([row_norms(value, 0, len(value)).square() for value in values.values()]).sum(dim=0).sqrt()


def draw_directions(leaves: dict[str, Leaf], draws: int, seed: int) -> tuple[Values, int]:
    """Draw directions u by leaf, `(draws, ...)`, and count the values n that they step.

    They are drawn one by one on the main processor, so that they do not depend on batch, dtype or device.
    """
    generator = torch.Generator().manual_seed(seed)
    count = sum(leaf.value[0].numel() for leaf in leaves.values())
    drawn: dict[str, list[torch.Tensor]] = {name: [] for name in leaves}
    for _ in range(draws):
        for name, leaf in leaves.items():
            drawn[name].append(torch.randn(leaf.value.shape[1:], generator=generator, dtype=torch.float32))
    return {name: (torch.stack(drawn[name]) / count**0.5).to(leaf.value) for name, leaf in leaves.items()}, count


def stepped_leaves(run: ModelRun) -> dict[str, Leaf]:
    """Find what can be stepped in the input.

    Raises:
        InputError: when nothing can.
    """
    leaves = find_leaves(run.model, run.inputs, run.forward)
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.value.ndim}
    if not leaves:
        raise InputError("the input holds single numbers only, and no floating-point tensor with a batch axis.")
    return leaves


def refuse_none(sites: Sequence[MeasuredCall], layers: int, left_out: Mapping[str, str]) -> None:
    """Refuse to go without layers.

    Raises:
        LayerNotFound: when no site is left.
    """
    if sites:
        return
    reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:4])
    raise LayerNotFound(f"no layer of {layers} could be measured. {reasons}.")
