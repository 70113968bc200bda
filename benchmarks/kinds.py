"""Which method for series and for tables: models with a planted answer or exact Shapley values, and real data.

python -m benchmarks.kinds measure [KIND]    (half an hour on one core; can be stopped and taken up again)
python -m benchmarks.kinds again METHOD      (forgets the rows of a method, such as auto, so that `measure` makes them)
python -m benchmarks.kinds report > benchmarks/kinds.md     (seconds, from benchmarks/kinds.npz)

A new row is a line of benchmarks/kinds_methods.py: `measure` takes what is missing, and nothing else. It trains the
networks again where it does, and refuses one whose scores are not those that were stored. Series are read from the
files of aeon, see requirements-models.txt. `layerlens.saliency(method="auto")` follows the report.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerlens import saliency
from layerlens.errors import LayerLensError
from layerlens.files import whole
from layerlens.results import Attribution

from .kinds_methods import CONTROLS, control, given_to, options_for
from .kinds_report import STORED, Stored, report
from .kinds_series import series
from .kinds_tables import tables
from .kinds_task import Subject, Task, of_class

APART = 1e-2
"""Largest difference between the scores of a network and those stored, as a share of their deviation."""


class Passes:
    """Counts the forward passes of a sample in a block; one that records a graph counts three, for its backward."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.count = model, 0

    def __enter__(self) -> Passes:
        self.handle = self.model.register_forward_pre_hook(self._add, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.remove()

    def _add(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.count += len(next(one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor))) * (
            3 if torch.is_grad_enabled() else 1
        )


def tasks() -> Iterator[Task]:
    """All tasks."""
    yield from tables()
    yield from series()


def measure(kind: str = "") -> None:
    """Measure what is missing, of kinds that begin with some words, and store it after every task."""
    torch.set_num_threads(1)
    found = Stored.load(STORED)
    for task in tasks():
        names = [name for name in (*task.rows, *CONTROLS) if (task.name, name) not in found.rows]
        if not names or not task.kind.startswith(kind):
            continue
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            subject = task.build()
            _same(found, task, subject)
            for name in names:
                found.rows[task.name, name] = _row(task, subject, name)
        with whole(STORED) as file:
            found.save(file)
        print(f"{task.name}: {len(names)} rows, {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)


def _same(found: Stored, task: Task, subject: Subject) -> None:
    """Store the scores of a network, or compare them with those stored.

    Raises:
        ValueError: when they are others: the rows would not be of the same network.
    """
    score = of_class(subject.model, subject.target)
    x = subject.x
    with torch.inference_mode():
        scores = torch.cat([score(x[row : row + 1], row) for row in range(len(x))])
    known = found.scores.get(task.name)
    if known is not None and float(np.abs(known - scores.numpy()).max()) > APART * float(known.std()):
        raise ValueError(
            f"{task.name}: this network is not the one that was measured, as training differs between machines. "
            f"Forget all of its rows: python -m benchmarks.kinds again {task.name!r}"
        )
    found.scores[task.name] = scores.numpy()
    groups = range(len(scores)) if subject.groups is None else subject.groups.tolist()
    found.tasks[task.name] = {"kind": task.kind, "real": task.real, "quality": subject.quality, "groups": list(groups)}


def _row(task: Task, subject: Subject, name: str) -> dict[str, Any]:
    """The numbers of a method: every measure `(samples,)`, passes and seconds a sample; or why there are none."""
    if name in CONTROLS:
        base = saliency(subject.model, subject.x, target=subject.target, method="feature_ablation")
        result = dataclasses.replace(base, values=control(name, subject.x))
        return {"passes": 0.0, "seconds": 0.0, **_measured(subject, result)}
    method, given = task.rows[name]
    options = options_for(given, subject.background)
    if options is None:
        return {"why": "no background"}
    start = time.process_time()
    try:
        with Passes(subject.model) as passes:
            result = saliency(subject.model, subject.x, target=subject.target, method=method, **options)
    except LayerLensError as error:  # a method that does not take this input
        return {"why": str(error).splitlines()[0][:200]}
    count = len(subject.x)
    cost = {"passes": passes.count / count, "seconds": (time.process_time() - start) / count}
    return {**cost, "took": result.method, "given": given_to(given), **_measured(subject, result)}


def _measured(subject: Subject, result: Attribution) -> dict[str, Any]:
    try:
        return {name: measure(result).float().numpy() for name, measure in subject.measures.items()}
    except LayerLensError as error:  # values that are not finite
        return {"why": str(error).splitlines()[0][:200]}


def again(name: str) -> None:
    """Forget the rows of a method, or all of a task."""
    found = Stored.load(STORED)
    gone = [key for key in found.rows if name in (key[0], key[1].split(",")[0], key[1])]
    for key in gone:
        del found.rows[key]
    if name in found.tasks:
        del found.tasks[name], found.scores[name]
    with whole(STORED) as file:
        found.save(file)
    print(f"{len(gone)} rows forgotten", file=sys.stderr)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "report":
        print(report(Stored.load(Path(arguments[0]) if arguments else STORED)))
    else:
        verbs: Any = {"measure": measure, "again": again}
        verbs[what](*arguments)
