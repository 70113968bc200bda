"""Samples of a batch: whether they influence each other, and whether a target follows them; found by experiment."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from layerlens.errors import TargetError, warn
from layerlens.model.borrowed import generator_states, restore_generators
from layerlens.model.trees import map_tensors, named_tensors
from layerlens.targets.target import Target

from .statistics import nearly_equal

Leaves = Mapping[str, torch.Tensor]
Run = Callable[[Leaves, "torch.Tensor | None"], Any]
"""`(values, rows) -> output` of a borrowed model; rows of None are those of the batch."""

ROUNDING = 64
"""Last places by which two scores of one row may differ without a closer look."""

INTERACTING = (
    "samples influence each other in this model (batch statistics, quantization by batch, a fixed number of samples): "
    "every change is run by itself, in a batch of {} as given, which takes longer. If the first axis of the input is "
    "not the batch, give x with the batch first and forward=, such as lambda model, x: model(x.transpose(0, 1))."
)
FOLLOW = (
    "methods repeat, reorder and leave out rows of the output. A function with numbers of its own for each sample "
    "takes the samples that the rows belong to: def score(output, samples): return output[torch.arange(len(samples)), "
    "ids[samples]]."
)


ONE_BY_ONE = {"passes": "one row each: samples influence each other"}
"""A setting of results whose rows were run one by one."""

_SAID: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar("said", default=None)


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


def warn_of_influence(count: int) -> None:
    """Warn that samples influence each other in a batch of `count`; once within `said_once`."""
    if not _SAID.get():
        warn(INTERACTING.format(count))
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


def interact(run: Run, target: Target, batch: Leaves, values: Leaves, rows: torch.Tensor) -> bool:
    """Return whether a row gets another score next to other rows than in the batch, by more than rounding.

    One of a few rows is run next to the others, and instead of its sample in the batch. Where the scores differ by more
    than `ROUNDING`, two copies of that batch in one pass show what the number of rows alone does: other kernels, or
    more than that. A model that draws other numbers in every pass has no answer, and may run many rows at once.

    Args:
        run: runs a borrowed model.
        target: what is scored.
        batch: the leaves as they are.
        values: changed rows, `(n, ...)` by leaf.
        rows: sample of the batch that each belongs to, `(n,)`.

    Raises:
        TargetError: when a function of the user cannot read another number of rows.

    Warns:
        UserWarning: when rows influence each other.
    """
    count = len(next(iter(batch.values())))
    few = torch.linspace(0, len(rows) - 1, count + 3).round().long().to(rows.device)  # another number than the batch
    middle = len(few) // 2
    own, sample = in_batch(batch, values, rows, int(few[middle])), int(rows[few[middle]])

    def alone(copies: int = 1) -> torch.Tensor:
        every = torch.arange(count, device=rows.device).repeat(copies)
        output = run({name: torch.cat([value] * copies) for name, value in own.items()}, every if copies > 1 else None)
        return target(output, every, at=target.at)[sample]

    def found() -> bool:
        score = alone()
        output = or_none(lambda: run({name: value[few] for name, value in values.items()}, rows[few]))
        shared = None if output is None else or_none(lambda: target(output, rows[few], at=target.at)[middle])
        if shared is None:
            if output is not None:
                check_function(target, output, rows[few])
            return True
        if _off(shared, score) <= ROUNDING or _off(alone(), score) > ROUNDING:
            return False
        counted = or_none(lambda: alone(2))
        if counted is None or not nearly_equal(counted, score):
            return True
        return _off(shared, score) > 4 * _off(counted, score) + ROUNDING

    states = generator_states()
    try:
        with torch.no_grad():
            interacting = found()
    finally:
        restore_generators(states)
    if interacting:
        warn_of_influence(count)
    return interacting


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

    def chosen(tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor.is_nested or not tensor.ndim or len(tensor) != count
        return tensor if whole else tensor[rows.to(tensor.device)]

    with torch.no_grad():
        moved = map_tensors(output, chosen)
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
    """The difference of two scores in last places of the larger one."""
    a, b = float(first), float(second)
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    off = abs(a - b) / (max(abs(a), abs(b)) * torch.finfo(first.dtype).eps)
    return off if math.isfinite(off) else math.inf
