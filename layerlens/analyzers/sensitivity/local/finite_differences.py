"""What layers answer to steps of the input, by central finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from layerlens.analyzers.common.calls.call_sites import Site, floating, row_norms

from .probe_run import Answers, Job, Unavailable, Values, lengths

STEP = 1e-5
"""Length of a finite-difference step relative to that of the sample's input: truncation and rounding in float32
balance near it (Nocedal & Wright 2006, sec. 8.1, would have 4e-3 for smooth functions; kinks of ReLU ask for less)."""

ROUNDING = 10
"""A difference below this many units of rounding of the output is doubtful."""


def finite_differences(job: Job) -> Answers:
    """Central differences (h(x + s u) - h(x - s u)) / 2s with s = `STEP` ||x||; both runs draw the same numbers.

    Raises:
        Unavailable: when the numbers are too short for differences.
    """
    for value in job.start.values():
        if torch.finfo(value.dtype).eps > 1e-6:
            dtype = str(value.dtype).removeprefix("torch.")
            raise Unavailable(f"differences in {dtype} are rounding noise, use model.float() and x.float()")
    answers = Answers()
    for values, steps in job.chunks():
        length = step_length(values, STEP)  # (rows,)
        above = outputs_at(job, moved(values, steps, length), job.sites)
        job.run(moved(values, steps, -length), _difference_reader(answers, above, length, job.inputs.batch))
    return answers


def _difference_reader(
    answers: Answers, above: dict[Site, torch.Tensor], length: torch.Tensor, batch: int
) -> Callable[[Site, Any], None]:
    def read(site: Site, output: Any) -> None:
        below, axis = floating(output)[site.main], site.axes[site.main]
        if site not in above or above[site].shape != below.shape:
            return  # the step changed the route
        difference = row_norms(above.pop(site) - below, axis, len(length))
        noise = ROUNDING * torch.finfo(below.dtype).eps * row_norms(below, axis, len(length))
        if bool(((difference > 0) & (difference < noise)).any()):
            answers.doubtful.add(site)
        answers.add(site, below, difference / (2 * length), batch)

    return read


def outputs_at(job: Job, values: Values, sites: list[Site]) -> dict[Site, torch.Tensor]:
    """What the sites return at `values`."""
    found: dict[Site, torch.Tensor] = {}

    def keep(site: Site, output: Any) -> None:
        found[site] = floating(output)[site.main].clone()

    job.run(values, keep, sites)
    return found


def step_length(values: Values, step: float) -> torch.Tensor:
    """`step` times the length of each row's input, `(rows,)`; `step` itself where the input is zero."""
    length = step * lengths(values)
    return torch.where(length > 0, length, step)


def moved(values: Values, steps: Values, length: torch.Tensor) -> Values:
    """`values` plus `length`, `(rows,)`, times `steps`."""
    return {
        name: value + steps[name] * length.to(value).reshape(-1, *[1] * (value.ndim - 1))
        for name, value in values.items()
    }
