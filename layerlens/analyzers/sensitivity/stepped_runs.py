"""Steps of the input and the layers' answers to them, whatever the route."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_sites import Site, copied_rows, row_norms, taps
from layerlens.analyzers.common.leaves.leaves import Leaf, substitute
from layerlens.analyzers.common.messages import NO_BATCH
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.probes.probe import Probe
from layerlens.progress import track

Values = dict[str, torch.Tensor]
"""One tensor per leaf."""


class Unavailable(Exception):
    """A route cannot run on this model."""


@dataclasses.dataclass
class Answers:
    """What the layers answered, by site; each list holds a tensor `(copies, batch)` per chunk of probes.

    Attributes:
        norms: ||J u||.
        sizes: ||h||.
        doubtful: sites whose answers are close to rounding.
        left_out: name of a site that ran and cannot be read -> why.
    """

    norms: dict[Site, list[torch.Tensor]] = dataclasses.field(default_factory=dict)
    sizes: dict[Site, list[torch.Tensor]] = dataclasses.field(default_factory=dict)
    doubtful: set[Site] = dataclasses.field(default_factory=set)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, site: Site, value: torch.Tensor, norm: torch.Tensor, batch: int) -> None:
        """Note one chunk: what the layer returned, and the norms of its answer, `(copies * batch,)`."""
        size = row_norms(value, site.axes[site.main], len(norm))
        self.note(site, norm.reshape(-1, batch), size.reshape(-1, batch))

    def note(self, site: Site, norms: torch.Tensor, sizes: torch.Tensor) -> None:
        """Note one chunk, `(copies, batch)` each."""
        if site.axes[site.main] is None and bool((norms != 0).any()):
            self.left_out[site.name] = NO_BATCH
        self.norms.setdefault(site, []).append(norms)
        self.sizes.setdefault(site, []).append(sizes)


@dataclasses.dataclass(frozen=True)
class Job:
    """Directions to step in, and where to read the answer.

    Attributes:
        model: a borrowed model.
        inputs: its input.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.
        leaves: what is stepped, each `(batch, ...)`.
        directions: by leaf, `(probes, ...)`: the same directions u for all samples.
        sites: where to read.
        copies: probes run at once.
        seed: for models that draw numbers.
        progress: as in `track`.
        label: of the progress bar.
    """

    model: nn.Module
    inputs: Inputs
    forward: Forward | None
    leaves: Mapping[str, Leaf]
    directions: Values
    sites: list[Site]
    copies: int
    seed: int
    progress: bool | None
    label: str

    @property
    def name(self) -> str:
        """The class of the model."""
        return type(self.model).__name__

    @property
    def start(self) -> Values:
        """Copies of the leaves, `(batch, ...)`; ordinary tensors also when the caller is in inference mode."""
        return {name: leaf.value.clone() for name, leaf in self.leaves.items()}

    def chunks(self) -> Iterator[tuple[Values, Values]]:
        """Leaves and directions of some probes at a time, each `(copies * batch, ...)`."""
        batch, start = self.inputs.batch, self.start
        for part in self.parts():
            copies = len(next(iter(part.values())))
            values = {name: value.repeat(copies, *[1] * (value.ndim - 1)) for name, value in start.items()}
            steps = {name: part[name].repeat_interleave(batch, dim=0) for name in start}
            yield values, steps

    def parts(self) -> Iterator[Values]:
        """The directions of some probes at a time, `(copies, ...)`."""
        probes = torch.arange(len(next(iter(self.directions.values()))))
        for part in track(torch.split(probes, self.copies), self.label, enabled=self.progress):
            yield {name: steps[part] for name, steps in self.directions.items()}

    def run(
        self,
        values: Values,
        read: Callable[[Site, Any], None],
        sites: list[Site] | None = None,
        *,
        stop: bool = False,
    ) -> Any:
        """Run on `values`, `(rows, ...)` per leaf, and call `read(site, output)` at each site.

        Args:
            values: what to put in the place of the leaves.
            read: what to do at the sites.
            sites: which ones; None for those of the job.
            stop: end the run once each of the sites has returned.

        Returns:
            What the model returned; None where the run was ended.
        """
        sites = self.sites if sites is None else sites
        rows = copied_rows(self.inputs.batch, len(next(iter(values.values()))) // self.inputs.batch)

        def tap(site: Site, output: Any) -> Any:
            read(site, output)
            return output

        inputs = self.inputs.rows(rows)
        inputs = inputs.replace({name: values[name] for name, leaf in self.leaves.items() if leaf.is_input})
        last = [f"{site.path}#{site.index}" for site in sites] if stop and all(site.path for site in sites) else ()
        torch.manual_seed(self.seed)
        output = None
        with (
            Probe(self.model, (), edits=substitute(self.leaves, values)),  # first, so that the sites see what it does
            Probe(self.model, (), edits=taps(sites, tap)),
            Probe(self.model, last, stop=bool(last), reduce=lambda output: None),
        ):
            output = inputs.run(self.model, self.forward)
        return output


def lengths(values: Values) -> torch.Tensor:
    """The Euclidean length of each row over all leaves together, `(rows,)`, float64."""
    return torch.stack([row_norms(value, 0, len(value)).square() for value in values.values()]).sum(dim=0).sqrt()


def directions(leaves: dict[str, Leaf], probes: int, seed: int) -> tuple[Values, int]:
    """The directions u by leaf, `(probes, ...)`, and the number n of values they step.

    Drawn probe by probe on the main processor, so that they are the same whatever the batch, dtype and device.
    """
    generator = torch.Generator().manual_seed(seed)
    count = sum(leaf.value[0].numel() for leaf in leaves.values())
    drawn: dict[str, list[torch.Tensor]] = {name: [] for name in leaves}
    for _ in range(probes):
        for name, leaf in leaves.items():
            drawn[name].append(torch.randn(leaf.value.shape[1:], generator=generator, dtype=torch.float32))
    return {name: (torch.stack(drawn[name]) / count**0.5).to(leaf.value) for name, leaf in leaves.items()}, count
