"""Samples of a batch: whether they influence each other, and whether a target follows them; found by experiment."""

from __future__ import annotations

import contextlib
import contextvars
import math
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from layerlens.axes.batch_axis import refuse_series
from layerlens.errors import TargetError, warn
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import generator_states, restore_generators
from layerlens.model.trees import named_tensors, rows_of
from layerlens.targets.target import Target

from .messages import BATCH_FIRST, interacting_message
from .statistics import nearly_equal

Leaves = Mapping[str, torch.Tensor]
Run = Callable[[Leaves, "torch.Tensor | None"], Any]
"""`(values, rows) -> output` of a borrowed model; rows of None are those of the batch."""

ROUNDING = 64
"""Last places of the output by which two scores of one row may differ."""

RUN_ALONE = "every change is run by itself, in a batch of {} as given"
FOLLOW = (
    "methods repeat, reorder and leave out rows of the output. A function with numbers of its own for each sample "
    "takes the samples that the rows belong to: def score(output, samples): return output[torch.arange(len(samples)), "
    "ids[samples]]."
)


ONE_BY_ONE = {"passes": "one row each: samples influence each other"}
"""A setting of results whose rows were run one by one."""

_SAID: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar("said", default=None)


class Known(NamedTuple):
    """A run, and what else it depends on whether samples reach each other's scores; None where that is not kept."""

    model: nn.Module
    inputs: Inputs
    forward: Forward | None
    key: Hashable | None = None


_INDEPENDENT: weakref.WeakKeyDictionary[nn.Module, set[Hashable]] = weakref.WeakKeyDictionary()
"""Where no sample reached the score of another one, so that it is not measured in every call."""


@contextlib.contextmanager
def said_once() -> Iterator[dict[str, str]]:
    """Warn at most once of samples that influence each other, for analyzers that look several times.

    Yields:
        Settings: empty, or `ONE_BY_ONE` where they do.
    """
    said: dict[str, str] = {}
    token = _SAID.set(said)
    try:
        yield said
    finally:
        _SAID.reset(token)


def warn_of_influence(count: int, done: str = RUN_ALONE, *, run: Known | None = None) -> None:
    """Warn that samples influence each other in a batch of `count`, and what is done; once within `said_once`.

    Raises:
        InputError: when the rows are places of one sample.
    """
    if run is not None:
        refuse_series(*run[:3])
    if not _SAID.get():
        warn(interacting_message(run and run[:3], f"{done.format(count)}, which takes longer", BATCH_FIRST))
    note_influence()


def note_influence() -> None:
    """Note that samples influence each other for the settings of `said_once`."""
    said = _SAID.get()
    if said is not None:
        said.update(ONE_BY_ONE)


def in_batch(batch: Leaves, values: Leaves, rows: torch.Tensor, place: int) -> dict[str, torch.Tensor]:
    """Return the batch with one of the changed rows `values` instead of its sample, and the others as they are."""
    sample = int(rows[place])
    return {
        name: torch.cat([batch[name][:sample], value[place : place + 1], batch[name][sample + 1 :]])
        for name, value in values.items()
    }


def interact(run: Run, target: Target, batch: Leaves, values: Leaves, rows: torch.Tensor, known: Known) -> bool:
    """Return whether samples get other scores next to other rows than in their batch, by more than rounding.

    The batch, with the smaller of two rows instead of its sample, is run as it is, and next to the other row, between
    the largest of all times -2 and 2: statistics, a scale, ranks, the first and last rows and their number all change.
    Where scores differ by more than `ROUNDING`, the batch is run again, and with its samples repeated to as many rows:
    what these change is rounding, of other kernels, unless it is large. A model that draws other numbers in every pass
    has no answer, and may run many rows at once.

    Args:
        run: runs a borrowed model.
        target: what is scored.
        batch: the leaves as they are.
        values: changed rows, `(n, ...)` by leaf.
        rows: sample of the batch that each belongs to, `(n,)`.
        known: the run, for messages.

    Raises:
        TargetError: when a function of the user cannot read another number of rows.
        InputError: when the rows are places of one sample.

    Warns:
        UserWarning: when rows influence each other.
    """
    count = len(next(iter(batch.values())))
    every = torch.arange(count, device=rows.device)
    few = torch.linspace(0, len(rows) - 1, 2).round().long().to(rows.device)
    if _lengths({name: value[few] for name, value in values.items()}).argmin() == 0:
        few = few.flip(0)  # the smaller row last
    own = in_batch(batch, values, rows, int(few[-1]))
    others = {name: torch.cat([value[few[:1]], own[name]]) for name, value in values.items()}
    largest = _lengths(others).argmax().reshape(1).to(rows.device)
    samples = torch.cat([rows[few[:1]], every])
    samples = torch.cat([samples[largest], samples, samples[largest]])

    def alone() -> tuple[torch.Tensor, Any]:
        output = run(own, None)
        return target(output, every, at=target.at), output

    def repeated() -> torch.Tensor:
        chosen = every.repeat(len(samples))[: len(samples)]
        moved = {name: value[chosen] for name, value in own.items()}
        return target(run(moved, chosen), chosen, at=target.at)[:count]

    def between(*factors: float) -> Any:
        ends = {name: [_scaled(value[largest], factor) for factor in factors] for name, value in others.items()}
        return run({n: torch.cat([ends[n][0], value, ends[n][1]]) for n, value in others.items()}, samples)

    def found() -> bool:
        scores, whole = alone()
        output = or_none(lambda: between(-2.0, 2.0))
        output = or_none(lambda: between(1.0, 1.0)) if output is None else output
        shared = None if output is None else or_none(lambda: target(output, samples, at=target.at)[2:-1])
        if shared is None:
            if output is not None:
                check_function(target, output, samples)
            return True
        floating = [tensor for tensor in (scores, *_floating(whole)) if tensor.is_floating_point()]
        eps = max((torch.finfo(tensor.dtype).eps for tensor in floating), default=0.0)
        place = max(_size(whole), float(scores.abs().nan_to_num().max())) * eps
        if _off(shared, scores) <= ROUNDING * place or _off(alone()[0], scores) > ROUNDING * place:
            return False
        counted = or_none(repeated)
        if counted is None or _off(counted, scores) > (place / eps**0.5 if eps else 0.0):
            return True
        return _off(shared, counted) > ROUNDING * place

    states = generator_states()
    try:
        with torch.no_grad():
            interacting = found()
    finally:
        restore_generators(states)
    if interacting:
        warn_of_influence(count, run=known)
    return interacting


def _scaled(value: torch.Tensor, factor: float) -> torch.Tensor:
    """A tensor times a factor; whole numbers as they are, as a model may take only some of them."""
    return value * factor if value.is_floating_point() else value


def rows_influence(run: Callable[[torch.Tensor], torch.Tensor], first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether a row gets another output next to another row than alone.

    Args:
        run: `(n, ...) -> outputs`, `(n, ...)`.
        first: a row.
        second: another.

    Warns:
        UserWarning: if so.
    """
    alone, again = run(second.unsqueeze(0)), run(second.unsqueeze(0))
    shared = or_none(lambda: run(torch.stack([first, second]))[1:])
    influence = shared is None or not nearly_equal(shared, alone)
    if influence and nearly_equal(again, alone):  # else it draws other numbers in each pass
        warn_of_influence(1)
        return True
    return False


def slopes_by_sample(
    scores: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    interacting: bool | None = None,
    *,
    run: Known,
    keep: bool = False,
) -> tuple[tuple[torch.Tensor | None, ...], bool | None]:
    """Return the gradient of each sample's own score by its rows of some tensors; None for those it does not depend on.

    Where samples influence each other the gradient of the sum of the scores would hold the scores of the others: they
    are then differentiated one by one, in one graph.

    Args:
        scores: `(n,)`, with a graph.
        tensors: each `(n, ...)`; others get the gradient of the sum.
        interacting: whether samples influence each other; None to find out, by the gradient of one score.
        run: what this is found out for once.
        keep: whether the graph is differentiated once more.

    Returns:
        The gradients, and whether samples influence each other, None for a single one.

    Warns:
        UserWarning: when they were found to.
    """
    if interacting is None and len(scores) > 1 and (interacting := _reaches_others(scores, tensors, run)):
        warn_of_influence(len(scores), "the score of every sample is differentiated by itself", run=run)
    if not interacting or len(scores) == 1:
        return torch.autograd.grad(scores.sum(), tensors, allow_unused=True, retain_graph=keep or None), interacting
    found = list(torch.autograd.grad(scores.sum(), tensors, allow_unused=True, retain_graph=True))
    for row, score in enumerate(scores):
        own = torch.autograd.grad(score, tensors, allow_unused=True, retain_graph=True)
        for place, slope in enumerate(own):
            whole = found[place]
            if whole is not None and len(whole) == len(scores):
                whole[row] = 0 if slope is None else slope[row]
    return tuple(found), interacting


def warn_of_joint_scores(score: Callable[[Leaves], torch.Tensor], start: Leaves, what: str, *, run: Known) -> None:
    """Warn if samples influence each other, for a method that explains the sum of their scores.

    Args:
        score: from the leaves to scores, `(n,)`; it runs if there is more than one sample.
        start: the leaves, each `(n, ...)`, with gradients.
        what: the values of the method, for the message.
        run: what this is found out for once.

    Raises:
        InputError: when the rows are places of one sample.
    """
    if run.key in _INDEPENDENT.get(run.model, ()):
        return
    states = generator_states()
    try:
        joint = len(next(iter(start.values()))) > 1 and _reaches_others(score(start), list(start.values()), run)
    except RuntimeError:  # torch cannot differentiate the model; the method may
        joint = False
    finally:
        restore_generators(states)
    if joint:
        refuse_series(*run[:3])
        done = f"the {what} of a sample holds what it does to the scores of the other samples as well"
        warn(interacting_message(run[:3], done, "Give one sample at a time."))


def _reaches_others(scores: torch.Tensor, tensors: Sequence[torch.Tensor], run: Known) -> bool:
    """Return whether scores of one half of the samples have a gradient by the other half; it is exactly 0 for none.

    Both halves, as later steps of a series may depend on earlier ones alone.
    """
    if run.key in _INDEPENDENT.get(run.model, ()):
        return False
    half, count = len(scores) // 2, len(scores)
    for own, other in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        slopes = torch.autograd.grad(scores[own].sum(), tensors, allow_unused=True, retain_graph=True)
        rows = (slope[other] for slope in slopes if slope is not None and slope.ndim and len(slope) == count)
        if any(bool((row.abs() > 0).any()) for row in rows):
            return True
    if run.key is not None:
        _INDEPENDENT.setdefault(run.model, set()).add(run.key)
    return False


def check_samples(run: Run, target: Target, batch: Leaves, output: Any, scores: torch.Tensor) -> None:
    """Check that a function of the user scores the samples in another order and number as before.

    Args:
        run: runs a borrowed model.
        target: the target.
        batch: the leaves as they are.
        output: what the target read of them.
        scores: the scores, `(batch,)`.

    Raises:
        TargetError: when it does not, while the output does.
    """
    count = len(scores)
    if not target.own or count < 2:
        return
    rows = torch.tensor([count - 1, 0, 0] if count == 2 else [count - 1, 0], device=scores.device)

    def read(moved: Any) -> torch.Tensor | None:
        found: torch.Tensor | None = or_none(lambda: target(moved, rows, at=target.at))
        return found

    with torch.no_grad():
        moved = rows_of(output, rows, count)
        found = read(moved)
        if found is not None and nearly_equal(found, scores[rows]):
            return
        again = or_none(lambda: run({name: value[rows] for name, value in batch.items()}, rows))  # another batch axis?
        found = None if again is None else read(again)
    if again is None or (found is not None and nearly_equal(found, scores[rows])):
        return
    pairs = zip(named_tensors(moved), named_tensors(again), strict=False)
    if found is None or all(a.shape == b.shape and nearly_equal(a, b) for (_, a), (_, b) in pairs):
        check_function(target, again, rows)
        raise TargetError(
            f"target {target.label!r} gives the same samples other scores next to other samples: {FOLLOW}"
        )


def check_function(target: Target, output: Any, rows: torch.Tensor) -> None:
    """Check that a function of the user reads the output of some rows.

    Raises:
        TargetError: when it does not.
    """
    if not target.own:
        return
    try:
        target(output, rows, at=target.at)
    except Exception as error:
        raise TargetError(
            f"target {target.label!r} does not read {len(rows)} rows of the output ({type(error).__name__}: "
            f"{str(error)[:300]}), but {FOLLOW}"
        ) from error


def or_none(compute: Callable[[], Any]) -> Any:
    """Return what is computed, or None where it fails for another reason than memory.

    Raises:
        OutOfMemoryError: as torch raises it.
    """
    try:
        return compute()
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None


def _off(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest difference of scores; 0 if both are NaN, infinite if one is."""
    a, b = first.double(), second.double()
    same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(same, 0.0, (a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf)).max())


def _lengths(values: Leaves) -> torch.Tensor:
    """The Euclidean length of each row, `(n,)`."""
    lengths = [value.reshape(len(value), -1).float().norm(dim=1).cpu() for value in values.values()]
    length: torch.Tensor = torch.stack(lengths or [torch.zeros(1)]).norm(dim=0)
    return length


def _floating(output: Any) -> list[torch.Tensor]:
    tensors = (tensor for _, tensor in named_tensors(output))
    return [tensor for tensor in tensors if tensor.is_floating_point() and not tensor.is_nested and tensor.numel()]


def _size(output: Any) -> float:
    """The median size of the numbers of an output, of which scores are differences: at most some thousands are read."""
    medians = [one.flatten()[:: -(-one.numel() // 4096)].abs().float().median() for one in _floating(output)]
    return max([float(one) for one in medians if one.isfinite()], default=0.0)
