"""Trials: parts replaced, many trials in one run, each on its own copy of the batch."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from layerlens.analyzers.common.calls.measured_calls import MEMORY, copied_rows, floating
from layerlens.analyzers.common.parts.grid import Cut, narrow
from layerlens.analyzers.common.parts.hook_points import Key, Replace, hooked
from layerlens.analyzers.common.samples import note_influence
from layerlens.analyzers.common.statistics import nearly_equal
from layerlens.errors import LayerNotFound, warn
from layerlens.model.borrowed import seed_torch
from layerlens.model.trees import map_tensors
from layerlens.progress import track

from ..model_run import ModelRun
from ..output_metrics import Readout
from .intervention_sites import InterventionSite, SiteSurvey
from .replacements import Misfit, RandomDirection, Replacement


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of one site.

    Attributes:
        site: the site.
        number: number of the part in the site's grids.
    """

    site: InterventionSite
    number: int


@dataclasses.dataclass(frozen=True)
class Trial:
    """The change of one copy of the batch.

    Attributes:
        parts: parts that are replaced at once.
        draw: index of the draw of the new values.
    """

    parts: tuple[Part, ...]
    draw: int = 0


class PartReplacer:
    """Replaces parts, copy by copy, in new tensors: what a layer holds is not written to."""

    def __init__(self, changes: dict[Key, list[tuple[int, Part, int]]], replacement: Replacement, copies: int) -> None:
        self._changes, self._replacement, self._copies = changes, replacement, copies
        self.reached: set[Key] = set()
        self.misfits: dict[tuple[int, Key], str] = {}

    def __call__(self, key: Key, value: Any) -> Any:
        """Return the value with its parts replaced."""
        if key not in self._changes:
            return value
        self.reached.add(key)
        indices = itertools.count()
        done: dict[int, torch.Tensor] = {}

        def change(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            index = next(indices)
            if id(tensor) not in done:
                done[id(tensor)] = self._replaced(key, tensor, index)
            return done[id(tensor)]

        return map_tensors(value, change)

    def _replaced(self, key: Key, tensor: torch.Tensor, index: int) -> torch.Tensor:
        new = tensor.clone()
        for copy, part, draw in self._changes[key]:
            site = part.site
            if index >= len(site.grids):
                self.misfits[copy, key] = "returned other tensors than in a clean run"
                continue
            axis, parts = site.axes[index], site.grids[index]
            if parts is None:
                continue
            cut = parts.cut(part.number)
            if not _fits(new, axis, self._copies, cut):
                self.misfits[copy, key] = f"returned another shape than in a clean run: {tuple(tensor.shape)}"
                continue
            old = narrow(new if self._copies == 1 else copy_rows(new, axis, self._copies, copy), cut)
            try:
                old.copy_(self._replacement(site, index, cut, old, draw).expand_as(old))
            except Misfit as error:
                self.misfits[copy, key] = str(error)
        return new


def _fits(tensor: torch.Tensor, axis: int | None, copies: int, cut: Cut) -> bool:
    """Return whether the tensor has the rows of all copies, and the part."""
    if any(place >= tensor.ndim or start + length > tensor.shape[place] for place, start, length in cut):
        return False
    return axis is None or (axis < tensor.ndim and tensor.shape[axis] % copies == 0)


def copy_rows(tensor: torch.Tensor, axis: int | None, copies: int, copy: int) -> torch.Tensor:
    """Return a view of the rows of one copy of the batch."""
    if axis is None:
        return tensor
    width = tensor.shape[axis] // copies
    return tensor.narrow(axis, copy * width, width)


NULL_DRAWS = 4
"""Random directions for each part, when the null is asked for."""

FEWEST_SHARED = 8
"""Trials that share a run, at least, where memory allows."""


class RowsInteract(Exception):
    """Rows of a batch influence each other, so that copies cannot share a run."""


@dataclasses.dataclass
class TrialRunner:
    """Runs trials and reads what they change.

    Attributes:
        run: the model and its input.
        readout: what is read of outputs.
        survey: values that can be replaced.
        label: label of the progress bar.
        copies: largest number of trials that share a run.
        failed: name of a site -> why its trials have no value.
    """

    run: ModelRun
    readout: Readout
    survey: SiteSurvey
    label: str
    copies: int
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        # hooks on these change how their projection is computed, so they are in every run
        self._always = {site.key[:2] for site in self.survey.sites if site.key[0] == "attention"}
        self._clean: dict[int, torch.Tensor] = {}
        self._dtype = next((tensor.dtype for tensor in floating(self.survey.output)), torch.float32)

    def __call__(self, groups: Sequence[tuple[Part, ...]], replacement: Replacement, draws: int) -> torch.Tensor:
        """Replace each group of parts at once, and return what that changes, `(groups, draws, batch)`.

        Values are float64, and NaN where a group could not be replaced. Copies share a run as long as that changes
        nothing, which an unchanged copy in each run shows.
        """
        trials = [Trial(group, draw) for group in groups for draw in range(draws)]
        return self._changes(trials, replacement).reshape(len(groups), draws, -1)

    def null_changes(self, groups: Sequence[tuple[Part, ...]], replacement: Replacement) -> torch.Tensor:
        """Move each group as far as its replacement does in random directions; the mean over samples.

        Returns:
            Changes `(groups, draws)`.
        """
        random = RandomDirection(replacement, self.run.batch, self.run.seed)
        return self(groups, random, NULL_DRAWS).mean(dim=2)

    def measured(self, groups: Sequence[tuple[Part, ...]]) -> list[int]:
        """Return the indices of the groups of which no part failed.

        Raises:
            LayerNotFound: when there is none.
        """
        kept = [index for index, group in enumerate(groups) if not any(part.site.name in self.failed for part in group)]
        if not kept:
            reasons = "; ".join(f"{name} {why}" for name, why in list(self.left_out.items())[:4])
            raise LayerNotFound(f"no part of the selected layers could be replaced: {reasons}.")
        return kept

    @property
    def left_out(self) -> dict[str, str]:
        """Name of a layer without a value -> why."""
        return {**self.survey.left_out, **self.failed}

    def _changes(self, trials: Sequence[Trial], replacement: Replacement) -> torch.Tensor:
        with torch.no_grad():
            if self.copies > 1:
                try:
                    return self._all_trials(trials, replacement)
                except RowsInteract:
                    self.copies = 1
                    self.failed.clear()
                    self._warn_of_interacting_rows()
            return self._all_trials(trials, replacement)

    def _warn_of_interacting_rows(self) -> None:
        """Warn that rows are not samples, unless the model just draws other numbers for each copy."""
        seed_torch(self.run.seed + 1)
        output = self.run.inputs.run(self.run.model, self.run.forward)
        other_seed = self.readout(output, copied_rows(self.run.batch, 1))
        if nearly_equal(other_seed.to(self._dtype), self._unchanged(1).to(self._dtype)):
            note_influence()
            warn(
                f"{self.label}: entries along the first axis of the input influence each other, so parts are replaced "
                "one run at a time. If that axis is not the batch, give x with the batch first and forward=, such as "
                "lambda model, x: model(x.transpose(0, 1)); else positions are mistaken for samples.",
            )

    def _all_trials(self, trials: Sequence[Trial], replacement: Replacement) -> torch.Tensor:
        answers = torch.full((len(trials), self.run.batch), float("nan"), dtype=torch.float64)
        plan = list(self._plan(trials))
        loaded: list[InterventionSite] | None = None
        for sites, chunk, shared in track(plan, self.label, enabled=self.run.progress):
            if loaded is not sites:
                replacement.load(sites)
                loaded = sites
            answers[chunk] = self._shared_run([trials[index] for index in chunk], replacement, shared)
        return answers

    def _plan(self, trials: Sequence[Trial]) -> Iterator[tuple[list[InterventionSite], list[int], int | None]]:
        """Yield the sites whose new values are held, the trials that run together, and the copies of a shared run.

        All shared runs have one size, so that one unchanged run serves them all, and about as many trials each as
        there are runs: this makes that run, and the unchanged copies, cheapest.
        """
        at_once = min(self.copies, max(FEWEST_SHARED, math.ceil(len(trials) ** 0.5)), len(trials))
        for sites, members in _groups_in_memory(trials):
            shared = [
                index
                for index in members
                if at_once > 1 and not any(part.site.unsplittable for part in trials[index].parts)
            ]
            for start in range(0, len(shared), at_once):
                yield sites, shared[start : start + at_once], at_once
            for index in sorted(set(members) - set(shared)):
                yield sites, [index], None

    def _shared_run(self, trials: list[Trial], replacement: Replacement, shared: int | None) -> torch.Tensor:
        """Return the changes of trials that share a run, `(trials, batch)`; `shared` is None for a single trial.

        Raises:
            RowsInteract: when the unchanged copy changes too.
        """
        batch, count = self.run.batch, len(trials)
        copies = 1 if shared is None else shared + 1
        clean = self._unchanged(copies)
        changes: dict[Key, list[tuple[int, Part, int]]] = {}
        for copy, trial in enumerate(trials):
            for part in trial.parts:
                changes.setdefault(part.site.key, []).append((copy, part, trial.draw))
        replacer = PartReplacer(changes, replacement, copies)
        changed = self.output(copies, replacer, changes)
        if shared is not None:
            untouched = slice(count * batch, None)
            if not nearly_equal(clean[untouched], changed[untouched]):
                raise RowsInteract
        rows = slice(0, count * batch)
        signed = self.readout.signed
        change = (changed - clean)[rows, 0] if signed else self.readout.change(clean[rows], changed[rows])
        answers = change.reshape(count, batch).clone()
        for copy, trial in enumerate(trials):
            for part in trial.parts:
                why = replacer.misfits.get((copy, part.site.key))
                if why is None and part.site.key not in replacer.reached:
                    why = "did not run the same way a second time: the route of this model changes"
                if why is not None:
                    answers[copy] = float("nan")
                    self.failed[part.site.name] = why
        return answers

    def _unchanged(self, copies: int) -> torch.Tensor:
        """Return the output of unchanged copies of the batch, as many as in the changed runs.

        Raises:
            RowsInteract: when it depends on the number of copies.
        """
        if copies not in self._clean:
            self._clean[copies] = self.output(copies, lambda key, value: value, ())
            if copies > 1:
                single = self._unchanged(1)
                repeated = single.repeat(copies, *[1] * (single.ndim - 1))
                if not nearly_equal(repeated.to(self._dtype), self._clean[copies].to(self._dtype)):
                    raise RowsInteract
        return self._clean[copies]

    def output(self, copies: int, replace: Replace, keys: Iterable[Key]) -> torch.Tensor:
        """Return what is read of a run on copies of the batch, side by side, in which values are replaced."""
        model, forward = self.run.model, self.run.forward
        rows = copied_rows(self.run.batch, copies)
        inputs = self.run.inputs.rows(rows) if copies > 1 else self.run.inputs
        seed_torch(self.run.seed)
        places = self._always | {key[:2] for key in keys}
        with torch.no_grad(), hooked(model, places, replace) as running:
            output = inputs.run(model, forward if running is None else running.around(forward))
        return self.readout(output, rows)


def _groups_in_memory(trials: Sequence[Trial]) -> Iterator[tuple[list[InterventionSite], list[int]]]:
    """Yield groups of trials whose sites fit into memory together: the sites, and the indices of the trials."""
    sites: dict[int, InterventionSite] = {}
    members: list[int] = []
    nbytes = 0
    for index, trial in enumerate(trials):
        more = {id(part.site): part.site for part in trial.parts if id(part.site) not in sites}
        added = sum(site.nbytes for site in more.values())
        if members and nbytes + added > MEMORY:
            yield list(sites.values()), members
            more = {id(part.site): part.site for part in trial.parts}
            sites, members, nbytes, added = {}, [], 0, sum(site.nbytes for site in more.values())
        sites.update(more)
        nbytes += added
        members.append(index)
    yield list(sites.values()), members
