"""Many interventions in one run: each on its own copy of the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ....inputs import Inputs
from ....nested import map_tensors
from ....outputs import main_output
from ....progress import track
from ..metrics import Readout
from ..sites import MEMORY, copied_rows
from .find import Found, Seam, tolerant
from .grid import Cut, narrow
from .taps import Key, tapped
from .values import Misfit, Source


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
    forward: Callable[..., Any] | None
    read: Readout
    found: Found
    seed: int
    progress: bool | None
    label: str
    copies: int
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name of a seam -> why a trial at it has no value."""

    def __post_init__(self) -> None:
        self._places = list(dict.fromkeys(seam.key[:2] for seam in self.found.seams))
        self._clean: dict[int, torch.Tensor] = {}
        main = main_output(self.found.output)
        self._dtype = main.dtype if main.is_floating_point() else torch.float32

    def signed(self) -> bool:
        """Whether changes are differences of a score."""
        return self.read.target is not None and self.read.metric == "change"

    def score(self) -> torch.Tensor:
        """What is read of the model as it is, `(batch, ...)`."""
        return self._unchanged(1)

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
            return self._all(trials, source)

    def _all(self, trials: Sequence[Trial], source: Source) -> torch.Tensor:
        answers = torch.full((len(trials), self.inputs.batch), float("nan"), dtype=torch.float64)
        plan = list(self._plan(trials))
        loaded: list[Seam] | None = None
        for seams, chunk in track(plan, self.label, enabled=self.progress):
            if loaded is not seams:
                source.load(seams)
                loaded = seams
            answers[chunk] = self._run([trials[index] for index in chunk], source)
        return answers

    def _plan(self, trials: Sequence[Trial]) -> Iterator[tuple[list[Seam], list[int]]]:
        """Which trials run together, and the seams whose new values are held meanwhile."""
        seams: dict[int, Seam] = {}
        group: list[int] = []
        groups: list[tuple[list[Seam], list[int]]] = []
        for index, trial in enumerate(trials):
            more = {id(part.seam): part.seam for part in trial.parts}
            if group and sum(seam.nbytes for seam in {**seams, **more}.values()) > MEMORY:
                groups.append((list(seams.values()), group))
                seams, group = {}, []
            seams.update(more)
            group.append(index)
        for held, members in [*groups, (list(seams.values()), group)]:
            single = [index for index in members if self.copies < 2 or any(p.seam.alone for p in trials[index].parts)]
            shared = [index for index in members if index not in set(single)]
            for start in range(0, len(shared), self.copies):
                yield held, shared[start : start + self.copies]
            for index in single:
                yield held, [index]

    def _run(self, trials: list[Trial], source: Source) -> torch.Tensor:
        """The answers of trials that share a run, `(trials, batch)`."""
        batch, count = self.inputs.batch, len(trials)
        copies = count + (count > 1)
        clean = self._unchanged(copies)
        changes: dict[Key, list[tuple[int, Part, int]]] = {}
        for copy, trial in enumerate(trials):
            for part in trial.parts:
                changes.setdefault(part.seam.key, []).append((copy, part, trial.draw))
        exchange = _Exchange(changes, source, copies)
        changed = self._output(copies, exchange)
        if count > 1:
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
            self._clean[copies] = self._output(copies, lambda key, value: value)
            if copies > 1:
                single = self._unchanged(1)
                repeated = single.repeat(copies, *[1] * (single.ndim - 1))
                if not tolerant(repeated.to(self._dtype), self._clean[copies].to(self._dtype)):
                    raise Interacting
        return self._clean[copies]

    def _output(self, copies: int, exchange: Callable[[Key, Any], Any]) -> torch.Tensor:
        rows = copied_rows(self.inputs.batch, copies)
        inputs = self.inputs.rows(rows) if copies > 1 else self.inputs
        torch.manual_seed(self.seed)
        with torch.no_grad(), tapped(self.model, self._places, exchange) as running:
            output = inputs.run(self.model, self.forward if running is None else running.around(self.forward))
        return self.read(output, rows)


class _Exchange:
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
