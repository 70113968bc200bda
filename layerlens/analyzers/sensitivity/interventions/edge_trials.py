"""Trials on edges: a part takes replaced values of some earlier parts, and the values of the trial of the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from layerlens.analyzers.common.calls.measured_calls import MEMORY, floating
from layerlens.analyzers.common.parts.grid import narrow
from layerlens.analyzers.common.parts.hook_points import Key
from layerlens.analyzers.common.statistics import nearly_equal
from layerlens.errors import InputError
from layerlens.inputs.inputs import Inputs
from layerlens.model.trees import map_tensors
from layerlens.progress import track
from layerlens.results.values.attribution_graph import SCORE

from .intervention_sites import InterventionSite
from .replacements import Misfit, Replacement
from .trials import Part, TrialRunner, copy_rows

Edge: TypeAlias = tuple[str, str]
"""Names of the sender and the receiver."""

Job: TypeAlias = tuple[int, frozenset[str]]
"""A trial, and the senders of which a receiver takes replaced values."""

_SCORE: Key = ("output", SCORE, -1)
"""Where scores are kept, next to values of sites."""


@dataclasses.dataclass
class EdgeTrials:
    """Runs a model part by part, each with its own values of the parts before it (path patching, Wang et al. 2022).

    In the order of execution, each part of a trial is computed by a run in which every earlier part has the value that
    it has in the trial, or the replaced one where its edge to this part is cut; the score is computed last.

    Attributes:
        runner: the model, its input and what is read.
        parts: parts by name, in the order of execution.
        inputs: node of an input -> name of its tensor; None for all tensors.
        other: the input that cut edges of inputs take; None if there is none.
        passes: number of runs, counting each copy of the batch.
    """

    runner: TrialRunner
    parts: Mapping[str, Part]
    inputs: Mapping[str, str | None]
    other: Inputs | None
    passes: int = 0

    def __post_init__(self) -> None:
        self._sites = list(dict.fromkeys(part.site for part in self.parts.values()))
        self._copies = 1 if any(site.unsplittable for site in self._sites) else self.runner.copies
        self._batch = self.runner.run.batch
        if self._copies > 1:
            one, two = (self.runner.output(copies, lambda key, value: value, ()) for copies in (1, 2))
            self._copies = self._copies if nearly_equal(torch.cat([one, one]), two) else 1

    def __call__(self, cuts: Sequence[Collection[Edge]], replacement: Replacement, draws: int) -> torch.Tensor:
        """Return the score when some edges are cut, for each of `cuts`, `(cuts, draws, batch)`.

        Raises:
            InputError: when a part has another shape than in a clean run.
        """
        trials: list[tuple[dict[str, frozenset[str]], int]] = []
        for cut in cuts:
            senders: dict[str, set[str]] = {}
            for sender, receiver in cut:
                senders.setdefault(receiver, set()).add(sender)
            frozen = {receiver: frozenset(some) for receiver, some in senders.items()}
            trials += [(frozen, draw) for draw in range(draws)]
        with torch.no_grad():
            replacement.load(self._sites)
            size = max(1, MEMORY // max(1, sum(site.nbytes for site in self._sites)))
            starts = track(range(0, len(trials), size), self.runner.label, enabled=self.runner.run.progress)
            scores = [self._some(trials[start : start + size], replacement) for start in starts]
        return torch.cat(scores).reshape(len(cuts), draws, -1)

    def _some(self, trials: Sequence[tuple[dict[str, frozenset[str]], int]], replacement: Replacement) -> torch.Tensor:
        """Return the scores of trials, `(trials, batch)`."""
        made: list[dict[Key, list[torch.Tensor]]] = [{} for _ in trials]
        draws = [draw for _, draw in trials]
        done: list[InterventionSite] = []
        for sites in self._stages({receiver for cut, _ in trials for receiver in cut}):
            own = {name: part for name, part in self.parts.items() if part.site in sites}
            jobs: dict[Job, list[Part]] = {}
            for trial, (cut, _) in enumerate(trials):
                if len(own) < sites[0].grid.size:
                    jobs[trial, frozenset()] = []  # parts that are not of the graph lose no edge
                for name, part in own.items():
                    jobs.setdefault((trial, cut.get(name, frozenset())), []).append(part)
            found = self._run(list(jobs), done, made, draws, replacement, sites)
            for (job, parts), by_key in zip(jobs.items(), found, strict=True):
                for key, tensors in by_key.items():
                    made[job[0]].setdefault(key, tensors)
                for part in parts:
                    base, tensors = made[job[0]][part.site.key], by_key[part.site.key]
                    for old, new, grid in zip(base, tensors, part.site.grids, strict=True):
                        if grid is not None and old is not new:
                            narrow(old, grid.cut(part.number)).copy_(narrow(new, grid.cut(part.number)))
            done += sites
        last = [(trial, cut.get(SCORE, frozenset())) for trial, (cut, _) in enumerate(trials)]
        return torch.stack([one[_SCORE][0] for one in self._run(last, done, made, draws, replacement, ())])

    def _stages(self, receivers: Collection[str]) -> list[list[InterventionSite]]:
        """Group sites that follow each other and whose parts lose no edge: one run computes all of them."""
        cut = {part.site for name, part in self.parts.items() if name in receivers}
        stages: list[list[InterventionSite]] = []
        for site in self._sites:
            if site in cut or not stages or stages[-1][0] in cut:
                stages.append([site])
            else:
                stages[-1].append(site)
        return stages

    def _run(
        self,
        jobs: Sequence[Job],
        earlier: Iterable[InterventionSite],
        made: Sequence[Mapping[Key, list[torch.Tensor]]],
        draws: Sequence[int],
        replacement: Replacement,
        sites: Sequence[InterventionSite],
    ) -> list[dict[Key, list[torch.Tensor]]]:
        """Return the tensors of sites, and the scores, of each job.

        Raises:
            InputError: when a site does not run.
        """
        known = {one.key: one for one in earlier}
        names = {one.key: [(name, part) for name, part in self.parts.items() if part.site is one] for one in earlier}
        wanted = {one.key: one for one in sites}
        found: dict[Job, dict[Key, list[torch.Tensor]]] = {job: {} for job in jobs}
        by_inputs: dict[frozenset[str], list[Job]] = {}
        for job in jobs:
            by_inputs.setdefault(job[1].intersection(self.inputs), []).append(job)
        for cut, members in by_inputs.items():
            runner = self._with_inputs(cut)
            for start in range(0, len(members), self._copies):
                chunk = members[start : start + self._copies]
                self.passes += len(chunk)

                def replace(key: Key, value: Any, chunk: Sequence[Job] = chunk) -> Any:
                    for copy, job in enumerate(chunk if key in wanted else ()):
                        found[job][key] = [one.clone() for one in _of_copy(value, wanted[key], len(chunk), copy)]
                    if key not in known:
                        return value
                    new = map_tensors(value, lambda tensor: tensor.clone() if tensor.is_floating_point() else tensor)
                    for copy, (trial, senders) in enumerate(chunk):
                        tensors = _of_copy(new, known[key], len(chunk), copy)
                        for index, tensor in enumerate(tensors):
                            self._put(tensor, made[trial][key], index, known[key])
                            for name, part in names[key]:
                                if name in senders:
                                    _replace(tensor, part, index, replacement, draws[trial])
                    return new

                output = runner.output(len(chunk), replace, [*known, *wanted])
                for job, row in zip(chunk, output[:, 0].reshape(len(chunk), self._batch), strict=True):
                    found[job][_SCORE] = [row]
                if left := [one.name for one in sites if one.key not in found[chunk[0]]]:
                    raise InputError(f"{left[0]!r} did not run when parts before it were replaced.")
        return [found[job] for job in jobs]

    def _put(self, tensor: torch.Tensor, made: Sequence[torch.Tensor], index: int, site: InterventionSite) -> None:
        """Write the values of a trial.

        Raises:
            InputError: when they have another shape.
        """
        if site.grids[index] is None:
            return
        if tensor.shape != made[index].shape:
            raise InputError(
                f"{site.name!r} returned {tuple(tensor.shape)} when parts before it were replaced, and "
                f"{tuple(made[index].shape)} else: the route of this model changes."
            )
        tensor.copy_(made[index])

    def _with_inputs(self, cut: Collection[str]) -> TrialRunner:
        """The runner with the tensors of the other input at these nodes."""
        if not cut:
            return self.runner
        assert self.other is not None
        run, tensors = self.runner.run, self.other.tensors()
        whole = any(self.inputs[node] is None for node in cut)
        wanted = tensors if whole else {str(self.inputs[node]): tensors[str(self.inputs[node])] for node in cut}
        inputs = self.other if whole else run.inputs.replace(wanted)
        return dataclasses.replace(self.runner, run=dataclasses.replace(run, inputs=inputs))


def _of_copy(value: Any, site: InterventionSite, copies: int, copy: int) -> list[torch.Tensor]:
    """Return views of the rows of one copy of the batch, of each floating-point tensor.

    Raises:
        InputError: when there are other tensors than in a clean run.
    """
    found = floating(value)
    if len(found) != len(site.axes):
        raise InputError(f"{site.name!r} returned other tensors when parts before it were replaced.")
    if copies == 1:
        return found
    return [copy_rows(one, axis, copies, copy) for one, axis in zip(found, site.axes, strict=True)]


def _replace(tensor: torch.Tensor, part: Part, index: int, replacement: Replacement, draw: int) -> None:
    """Replace a part of a tensor.

    Raises:
        InputError: when the new value does not fit.
    """
    grid = part.site.grids[index]
    if grid is None:
        return
    cut = grid.cut(part.number)
    old = narrow(tensor, cut)
    try:
        old.copy_(replacement(part.site, index, cut, old, draw).expand_as(old))
    except Misfit as error:
        raise InputError(f"{part.site.name!r} cannot be replaced: it {error}.") from error
