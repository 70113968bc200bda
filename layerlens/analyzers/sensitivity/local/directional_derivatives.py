"""Three ways to the layers' answers: dual numbers, dual numbers with plain kernels, finite differences."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.autograd.forward_ad as forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from layerlens.analyzers.common.calls.call_sites import Site, floating, row_norms
from layerlens.errors import OptionError
from layerlens.model.borrowed import primitive_kernels

from ..stepped_runs import Answers, Job, Unavailable, Values, lengths

Route = Literal["auto", "forward_ad", "finite_differences"]
ROUTES = ("auto", "forward_ad", "finite_differences")
Kind = Literal["dual", "plain dual", "differences"]

SMOOTH = 0.05
"""Share of an output's numbers that a small step must change if the output depends on it by more than a threshold."""


def answer(job: Job, route: Route, *, shared: bool = True) -> tuple[Answers, str, Kind]:
    """The layers' answers, the route in words, and which of the three ways it was.

    Args:
        job: what to measure.
        route: which way, or `"auto"` for the first that works.
        shared: whether probes may share what they have in common.

    Raises:
        OptionError: when the route, or with `"auto"` every route, is impossible.
    """
    reasons = {}
    for name, kind, words, function in _ROUTES:
        if route in ("auto", name) and (shared or function not in _SHARED):
            try:
                answers = function(job)
            except Unavailable as error:
                reasons[name] = str(error)
            else:
                if kind == "differences":
                    return answers, words + (f"; no dual numbers: {reasons['forward_ad']}" if reasons else ""), kind
                return answers, words + ", on copies of the batch" * (shared and function not in _SHARED), kind
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    other = "" if route == "auto" else " Use route='auto'."
    raise OptionError(f"route={route!r} is impossible for {job.name}. {listed}.{other}")


@functools.cache
def load_formulas() -> None:
    """Have torch load its formulas for dual numbers, once and without a warning that is not about the caller's code.

    torch compiles some of them with `torch.jit.script`, which warns that it is deprecated (a FutureWarning since 2.14).
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script`")
        jvp: Any = torch.func.jvp
        jvp(torch.neg, (torch.zeros(1),), (torch.zeros(1),))


def dual_numbers(job: Job) -> Answers:
    """Tangents at all sites from one pass over dual numbers (Baydin et al. 2018, sec. 3.1).

    Norms are taken in the hooks: an operation after the layer may write into its output, and into the tangent.

    Raises:
        Unavailable: when an operation of the model has no rule for dual numbers, or drops the tangent.
    """
    load_formulas()
    answers, silent = Answers(), dict[Site, None]()
    for values, steps in job.chunks():
        rows = len(next(iter(values.values())))
        try:
            with forward_ad.dual_level():
                duals = {name: _dual(value, steps[name]) for name, value in values.items()}
                job.run(duals, _tangent_reader(answers, silent, rows, job.inputs.batch))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # NotImplementedError is one; a run without dual numbers has passed before
            raise Unavailable(sentence(error)) from error
    for name in _depending(job, list(silent)):
        raise Unavailable(f"the tangent is cut before layer {name!r} (by detach, numpy or inference mode)")
    return answers


def shared_dual_numbers(job: Job) -> Answers:
    """The same for all probes of a chunk at once: the values, which they share, are computed once.

    The tangents are a batch of their own (`torch.func.vmap`), which not every model bears: one that writes what it
    computes into a buffer, or chooses its route by it, does not.

    Raises:
        Unavailable: also when an operation of the model has no rule for such batches.
    """
    load_formulas()
    answers, silent = Answers(), dict[Site, None]()
    start, batch = job.start, job.inputs.batch
    order: list[Site] = []

    def lengths_of(steps: Values) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []

        def read(site: Site, output: Any) -> None:
            value, tangent = forward_ad.unpack_dual(floating(output)[site.main])  # type: ignore[no-untyped-call]
            size = row_norms(value, site.axes[site.main], batch)
            if tangent is None:
                silent[site] = None
            order.append(site)
            found.extend(
                (torch.zeros_like(size) if tangent is None else row_norms(tangent, site.axes[site.main], batch), size)
            )

        def run(values: Values) -> tuple[torch.Tensor, list[torch.Tensor]]:
            job.run(values, read)
            return next(iter(values.values())), found  # what is wanted was read on the way

        tangents = {name: steps[name].expand_as(value) for name, value in start.items()}
        jvp: Any = torch.func.jvp
        _, _, aside = jvp(run, (start,), (tangents,), has_aux=True)
        return list(aside)

    for part in job.parts():
        order.clear()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*performance drop")  # a slow way around a missing rule
                found = torch.func.vmap(lengths_of, randomness="same")(part)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what is wrong with the model itself shows again on copies of the batch
            raise Unavailable(sentence(error)) from error
        for place, site in enumerate(order):
            answers.note(site, found[2 * place], found[2 * place + 1])
    for name in _depending(job, list(silent)):
        raise Unavailable(f"the tangent is cut before layer {name!r} (by detach, numpy or inference mode)")
    return answers


def _tangent_reader(answers: Answers, silent: dict[Site, None], rows: int, batch: int) -> Callable[[Site, Any], None]:
    def read(site: Site, output: Any) -> None:
        value, tangent = forward_ad.unpack_dual(floating(output)[site.main])  # type: ignore[no-untyped-call]
        if tangent is None:
            silent[site] = None
            answers.add(site, value, torch.zeros(rows, dtype=torch.float64), batch)
        else:
            answers.add(site, value, row_norms(tangent, site.axes[site.main], rows), batch)

    return read


def _dual(value: torch.Tensor, tangent: torch.Tensor) -> torch.Tensor:
    dual: torch.Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return dual


def _plainly(function: Callable[[Job], Answers]) -> Callable[[Job], Answers]:
    """The same with the plain kernels of attention and recurrent layers: the fused ones have no dual numbers."""

    def run(job: Job) -> Answers:
        with plain_kernels():
            return function(job)

    return run


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """The plain kernels of attention and recurrent layers for the length of a block."""
    with sdpa_kernel(SDPBackend.MATH), primitive_kernels():
        yield


def _depending(job: Job, sites: list[Site]) -> list[str]:
    """The sites without a tangent whose output changes with the input all the same.

    A threshold (a mask, a chosen index) has derivative zero and changes in few numbers; what was detached changes in
    most.
    """
    if not sites:
        return []
    start = job.start
    steps = {name: job.directions[name][:1].expand_as(value) for name, value in start.items()}
    rough = max(torch.finfo(value.dtype).eps for value in start.values()) > 1e-6
    before = outputs_at(job, start, sites)
    after = outputs_at(job, moved(start, steps, step_length(start, 0.1 if rough else 1e-4)), sites)
    changed = {
        site: float((before[site] != after[site]).double().mean())
        for site in sites
        if site in before and site in after and before[site].shape == after[site].shape
    }
    return [site.name for site, share in changed.items() if share > SMOOTH]


def sentence(error: BaseException) -> str:
    """The first sentence of an error, on one line."""
    text = " ".join(str(error).split())
    return text.split(" because it has not been")[0].split(". ")[0].rstrip(".") or type(error).__name__


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


_SHARED = (shared_dual_numbers, plain_shared := _plainly(shared_dual_numbers))
_PLAIN = "dual numbers with plain attention and recurrent kernels"
_ROUTES: tuple[tuple[str, Kind, str, Callable[[Job], Answers]], ...] = (
    ("forward_ad", "dual", "dual numbers", shared_dual_numbers),
    ("forward_ad", "plain dual", _PLAIN, plain_shared),
    ("forward_ad", "dual", "dual numbers", dual_numbers),
    ("forward_ad", "plain dual", _PLAIN, _plainly(dual_numbers)),
    ("finite_differences", "differences", f"central finite differences (relative step {STEP:g})", finite_differences),
)
