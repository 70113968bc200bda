"""Many interventions in one run: each on its own copy of the batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_sites import MEMORY, copied_rows
from layerlens.errors import warn
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.trees import map_tensors
from layerlens.progress import track
from layerlens.targets.target import main_output

from ..output_metrics import Readout
from .hook_points import Key, tapped
from .intervention_sites import Found, Seam, tolerant
from .parts import Cut, narrow
from .replacements import Misfit, Source

LEAST = 8
"""Trials that share a run where memory allows."""


class Interacting(Exception):
    """Rows of a batch influence each other, so that copies cannot share a run."""


@dataclasses.dataclass
class Runner:
    """Runs trials and reads what they change.

    Attributes:
        model: a borrowed model.
        inputs: its input.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.
        read: what is read of outputs.
        found: what can be exchanged.
        seed: for models that draw numbers.
        progress: as in `track`.
        label: of the progress bar.
        copies: trials that share a run.
    """

    model: nn.Module
    inputs: Inputs
    forward: Forward | None
    read: Readout
    found: Found
    seed: int
    progress: bool | None
    label: str
    copies: int
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name of a seam -> why a trial at it has no value."""

    def __post_init__(self) -> None:
        # the projection of these is made in another way once they are tapped, so they are in every run
        self._always = {seam.key[:2] for seam in self.found.seams if seam.key[0] == "attention"}
        self._clean: dict[int, torch.Tensor] = {}
        main = main_output(self.found.output)
        self._dtype = main.dtype if main.is_floating_point() else torch.float32

    def signed(self) -> bool:
        """Whether changes are differences of a score."""
        return self.read.target is not None and self.read.metric == "change"

    def __call__(self, trials: Sequence[Trial], source: Source) -> torch.Tensor:
        """What each trial changes, `(trials, batch)`, float64; NaN where it could not be made.

        Copies share a run as long as that changes nothing: a copy that is left alone rides along in each.
        """
        with torch.no_grad():
            if self.copies > 1:
                try:
                    return self._all(trials, source)
                except Interacting:
                    self.copies = 1
                    self.failed.clear()
                    self._warn()
            return self._all(trials, source)

    def _warn(self) -> None:
        """Say that rows are no samples, unless the model just draws other numbers for each copy."""
        torch.manual_seed(self.seed + 1)
        again = self.read(self.inputs.run(self.model, self.forward), copied_rows(self.inputs.batch, 1))
        if tolerant(again.to(self._dtype), self._unchanged(1).to(self._dtype)):
            warn(
                f"{self.label}: entries along the first axis of the input influence each other, so parts are replaced "
                "one run at a time. If that axis is not the batch, give x with the batch first and forward=, such as "
                "lambda model, x: model(x.transpose(0, 1)); else positions and samples are mistaken for each other.",
            )

    def _all(self, trials: Sequence[Trial], source: Source) -> torch.Tensor:
        answers = torch.full((len(trials), self.inputs.batch), float("nan"), dtype=torch.float64)
        plan = list(self._plan(trials))
        loaded: list[Seam] | None = None
        for seams, chunk, shared in track(plan, self.label, enabled=self.progress):
            if loaded is not seams:
                source.load(seams)
                loaded = seams
            answers[chunk] = self._run([trials[index] for index in chunk], source, shared)
        return answers

    def _plan(self, trials: Sequence[Trial]) -> Iterator[tuple[list[Seam], list[int], int | None]]:
        """The seams whose new values are held, the trials that run together, and how many copies a shared run has.

        All shared runs have one size, so that one run without changes serves them all, and about as many trials each
        as there are runs: then that one, and the copies that are left alone, weigh least.
        """
        at_once = min(self.copies, max(LEAST, math.ceil(len(trials) ** 0.5)), len(trials))
        for held, members in _groups(trials):
            shared = [k for k in members if at_once > 1 and not any(part.seam.alone for part in trials[k].parts)]
            for start in range(0, len(shared), at_once):
                yield held, shared[start : start + at_once], at_once
            together = set(shared)
            for index in members:
                if index not in together:
                    yield held, [index], None

    def _run(self, trials: list[Trial], source: Source, shared: int | None) -> torch.Tensor:
        """The answers of trials that share a run, `(trials, batch)`; None for one by itself."""
        batch, count = self.inputs.batch, len(trials)
        copies = 1 if shared is None else shared + 1
        clean = self._unchanged(copies)
        changes: dict[Key, list[tuple[int, Part, int]]] = {}
        for copy, trial in enumerate(trials):
            for part in trial.parts:
                changes.setdefault(part.seam.key, []).append((copy, part, trial.draw))
        exchange = Exchange(changes, source, copies)
        changed = self._output(copies, exchange, changes)
        if shared is not None:
            untouched = slice(count * batch, None)
            if not tolerant(clean[untouched], changed[untouched]):
                raise Interacting
        rows = slice(0, count * batch)
        change = (changed - clean)[rows, 0] if self.signed() else self.read.change(clean[rows], changed[rows])
        answers = change.reshape(count, batch).clone()
        for copy, trial in enumerate(trials):
            for part in trial.parts:
                why = exchange.misfits.get((copy, part.seam.key))
                if why is None and part.seam.key not in exchange.fired:
                    why = "did not run again in the same way: the route of this model changes"
                if why is not None:
                    answers[copy] = float("nan")
                    self.failed[part.seam.name] = why
        return answers

    def _unchanged(self, copies: int) -> torch.Tensor:
        """The output of copies of the batch as they are, made in the same company as those that are changed."""
        if copies not in self._clean:
            self._clean[copies] = self._output(copies, lambda key, value: value, ())
            if copies > 1:
                single = self._unchanged(1)
                repeated = single.repeat(copies, *[1] * (single.ndim - 1))
                if not tolerant(repeated.to(self._dtype), self._clean[copies].to(self._dtype)):
                    raise Interacting
        return self._clean[copies]

    def _output(self, copies: int, exchange: Callable[[Key, Any], Any], keys: Iterable[Key]) -> torch.Tensor:
        rows = copied_rows(self.inputs.batch, copies)
        inputs = self.inputs.rows(rows) if copies > 1 else self.inputs
        torch.manual_seed(self.seed)
        places = self._always | {key[:2] for key in keys}
        with torch.no_grad(), tapped(self.model, places, exchange) as running:
            output = inputs.run(self.model, self.forward if running is None else running.around(self.forward))
        return self.read(output, rows)


def _groups(trials: Sequence[Trial]) -> Iterator[tuple[list[Seam], list[int]]]:
    """Trials that follow each other, with the seams they need, whose values fit into memory."""
    seams: dict[int, Seam] = {}
    members: list[int] = []
    nbytes = 0
    for index, trial in enumerate(trials):
        more = {id(part.seam): part.seam for part in trial.parts if id(part.seam) not in seams}
        added = sum(seam.nbytes for seam in more.values())
        if members and nbytes + added > MEMORY:
            yield list(seams.values()), members
            more = {id(part.seam): part.seam for part in trial.parts}
            seams, members, nbytes, added = {}, [], 0, sum(seam.nbytes for seam in more.values())
        seams.update(more)
        nbytes += added
        members.append(index)
    yield list(seams.values()), members


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of one seam.

    Attributes:
        seam: where.
        number: of the part in the seam's grids.
    """

    seam: Seam
    number: int


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is changed in one copy of the batch.

    Attributes:
        parts: all at once.
        draw: of the new values.
    """

    parts: tuple[Part, ...]
    draw: int = 0


class Exchange:
    """Puts new values in the place of parts, copy by copy, in new tensors: what a layer keeps is not written to."""

    def __init__(self, changes: dict[Key, list[tuple[int, Part, int]]], source: Source, copies: int) -> None:
        self._changes, self._source, self._copies = changes, source, copies
        self.fired: set[Key] = set()
        self.misfits: dict[tuple[int, Key], str] = {}

    def __call__(self, key: Key, value: Any) -> Any:
        """The value with its parts exchanged."""
        if key not in self._changes:
            return value
        self.fired.add(key)
        places = iter(range(1 << 62))
        done: dict[int, torch.Tensor] = {}

        def change(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            place = next(places)
            if id(tensor) not in done:
                done[id(tensor)] = self._changed(key, tensor, place)
            return done[id(tensor)]

        return map_tensors(value, change)

    def _changed(self, key: Key, tensor: torch.Tensor, place: int) -> torch.Tensor:
        new = tensor.clone()
        for copy, part, draw in self._changes[key]:
            seam = part.seam
            if place >= len(seam.grids):
                self.misfits[copy, key] = "returned other tensors than in a clean run"
                continue
            axis, parts = seam.axes[place], seam.grids[place]
            if parts is None:
                continue
            cut = parts.cut(part.number)
            if not _fits(new, axis, self._copies, cut):
                self.misfits[copy, key] = f"returned another shape than in a clean run: {tuple(tensor.shape)}"
                continue
            old = narrow(new if self._copies == 1 else _copy(new, axis, self._copies, copy), cut)
            try:
                old.copy_(self._source(seam, place, cut, old, draw).expand_as(old))
            except Misfit as error:
                self.misfits[copy, key] = str(error)
        return new


def _fits(tensor: torch.Tensor, axis: int | None, copies: int, cut: Cut) -> bool:
    """Whether the tensor has the rows of all copies, and the part."""
    if any(place >= tensor.ndim or start + length > tensor.shape[place] for place, start, length in cut):
        return False
    return axis is None or (axis < tensor.ndim and tensor.shape[axis] % copies == 0)


def _copy(tensor: torch.Tensor, axis: int | None, copies: int, copy: int) -> torch.Tensor:
    """A view of the rows of one copy of the batch."""
    if axis is None:
        return tensor
    width = tensor.shape[axis] // copies
    return tensor.narrow(axis, copy * width, width)
