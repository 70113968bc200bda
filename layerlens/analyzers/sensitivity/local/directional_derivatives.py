"""Directional derivatives of all layers: dual numbers, with primitive kernels if needed, or finite differences."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.autograd.forward_ad as forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from layerlens.analyzers.common.calls.measured_calls import MeasuredCall, floating, row_norms
from layerlens.errors import OptionError
from layerlens.model.borrowed import primitive_kernels

from ..stepped_runs import Responses, SteppedRun, Unavailable, Values, row_lengths
from .linear_tangents import LinearTangents

Route = Literal["auto", "forward_ad", "finite_differences"]
ROUTES = ("auto", "forward_ad", "finite_differences")
Kind = Literal["dual", "plain dual", "differences"]

SMOOTH = 0.05
"""Share of an output's numbers that a small step must change if the output depends on it by more than a threshold."""


def measure_responses(stepped: SteppedRun, route: Route, *, shared: bool = True) -> tuple[Responses, str, Kind]:
    """Return the responses of the layers, a description of the route, and its kind.

    Args:
        stepped: what to measure.
        route: which route, or `"auto"` for the first that works.
        shared: whether directions may share one computation of the values.

    Raises:
        OptionError: when the route, or with `"auto"` every route, is impossible.
    """
    reasons = {}
    for name, kind, text, function in _ROUTES:
        if route in ("auto", name) and (shared or function not in _SHARED):
            try:
                responses = function(stepped)
            except Unavailable as error:
                reasons[name] = str(error)
            else:
                if kind == "differences":
                    return responses, text + (f"; no dual numbers: {reasons['forward_ad']}" if reasons else ""), kind
                return responses, text + ", on copies of the batch" * (shared and function not in _SHARED), kind
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    other = "" if route == "auto" else " Use route='auto'."
    raise OptionError(f"route={route!r} is impossible for {stepped.name}. {listed}.{other}")


@functools.cache
def load_formulas() -> None:
    """Have torch load its formulas for dual numbers, once and without a warning that is not about the caller's code.

    torch compiles some of them with `torch.jit.script`, which warns that it is deprecated (a FutureWarning since 2.14).
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script`")
        jvp: Any = torch.func.jvp
        jvp(torch.neg, (torch.zeros(1),), (torch.zeros(1),))


def dual_numbers(stepped: SteppedRun) -> Responses:
    """Return tangents at all sites from one pass over dual numbers (Baydin et al. 2018, sec. 3.1).

    Norms are taken in the hooks: an operation after the layer may write into its output, and into the tangent.

    Raises:
        Unavailable: when an operation of the model has no rule for dual numbers, or drops the tangent.
        OutOfMemoryError: from torch.
    """
    load_formulas()
    responses, silent = Responses(), dict[MeasuredCall, None]()
    for values, steps in stepped.chunks():
        rows = len(next(iter(values.values())))
        try:
            with forward_ad.dual_level(), LinearTangents():
                duals = {name: _dual(value, steps[name]) for name, value in values.items()}
                stepped.evaluate(duals, _tangent_reader(responses, silent, rows, stepped.run.batch))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # NotImplementedError is one; a run without dual numbers has passed before
            raise Unavailable(first_sentence(error)) from error
    for name in _detached_sites(stepped, list(silent)):
        raise Unavailable(f"the tangent is cut before layer {name!r} (by detach, numpy or inference mode)")
    return responses


def shared_dual_numbers(stepped: SteppedRun) -> Responses:
    """Return tangents for all directions of a chunk at once; the values, which they share, are computed once.

    The tangents are batched by `torch.func.vmap`, which fails for models that write what they compute into a buffer or
    choose their route by it.

    Raises:
        Unavailable: when an operation of the model has no rule for dual numbers or for such batches.
        OutOfMemoryError: from torch.
    """
    load_formulas()
    responses, silent = Responses(), dict[MeasuredCall, None]()
    start, batch = stepped.start, stepped.run.batch
    order: list[MeasuredCall] = []

    def lengths_of(steps: Values) -> list[torch.Tensor]:
        norms_and_sizes: list[torch.Tensor] = []

        def read(site: MeasuredCall, output: Any) -> None:
            value, tangent = forward_ad.unpack_dual(floating(output)[site.main])  # type: ignore[no-untyped-call]
            size = row_norms(value, site.axes[site.main], batch)
            if tangent is None:
                silent[site] = None
            order.append(site)
            norms_and_sizes.extend(
                (torch.zeros_like(size) if tangent is None else row_norms(tangent, site.axes[site.main], batch), size)
            )

        def run(values: Values) -> tuple[torch.Tensor, list[torch.Tensor]]:
            stepped.evaluate(values, read)
            return next(iter(values.values())), norms_and_sizes  # the norms were read during the run

        tangents = {name: steps[name].expand_as(value) for name, value in start.items()}
        jvp: Any = torch.func.jvp
        _, _, traced = jvp(run, (start,), (tangents,), has_aux=True)
        return list(traced)

    for part in stepped.direction_chunks():
        order.clear()
        try:
            with warnings.catch_warnings(), LinearTangents():
                warnings.filterwarnings("error", message=".*performance drop")  # a slow way around a missing rule
                norms_and_sizes = torch.func.vmap(lengths_of, randomness="same")(part)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what is wrong with the model itself shows again on copies of the batch
            raise Unavailable(first_sentence(error)) from error
        for place, site in enumerate(order):
            responses.add_norms(site, norms_and_sizes[2 * place], norms_and_sizes[2 * place + 1])
    for name in _detached_sites(stepped, list(silent)):
        raise Unavailable(f"the tangent is cut before layer {name!r} (by detach, numpy or inference mode)")
    return responses


def _tangent_reader(
    responses: Responses, silent: dict[MeasuredCall, None], rows: int, batch: int
) -> Callable[[MeasuredCall, Any], None]:
    """Return a reader of dual outputs, which adds the norms of their tangents to `responses`."""

    def read(site: MeasuredCall, output: Any) -> None:
        value, tangent = forward_ad.unpack_dual(floating(output)[site.main])  # type: ignore[no-untyped-call]
        if tangent is None:
            silent[site] = None
            responses.add(site, value, torch.zeros(rows, dtype=torch.float64), batch)
        else:
            responses.add(site, value, row_norms(tangent, site.axes[site.main], rows), batch)

    return read


def _dual(value: torch.Tensor, tangent: torch.Tensor) -> torch.Tensor:
    dual: torch.Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return dual


def _with_primitive_kernels(function: Callable[[SteppedRun], Responses]) -> Callable[[SteppedRun], Responses]:
    """Use primitive kernels of attention and recurrent layers, as the fused ones have no dual numbers."""

    def run(stepped: SteppedRun) -> Responses:
        with dual_number_kernels():
            return function(stepped)

    return run


@contextlib.contextmanager
def dual_number_kernels() -> Iterator[None]:
    """Use primitive kernels of attention and recurrent layers inside a block."""
    with sdpa_kernel(SDPBackend.MATH), primitive_kernels():
        yield


def _detached_sites(stepped: SteppedRun, sites: list[MeasuredCall]) -> list[str]:
    """Return the sites without a tangent whose output changes with the input all the same.

    A threshold (a mask, a chosen index) has derivative zero and changes in few numbers; what was detached changes in
    most.
    """
    if not sites:
        return []
    start = stepped.start
    steps = {name: stepped.directions[name][:1].expand_as(value) for name, value in start.items()}
    rough = max(torch.finfo(value.dtype).eps for value in start.values()) > 1e-6
    before = outputs_at(stepped, start, sites)
    after = outputs_at(stepped, step_values(start, steps, step_length(start, 0.1 if rough else 1e-4)), sites)
    changed = {
        site: float((before[site] != after[site]).double().mean())
        for site in sites
        if site in before and site in after and before[site].shape == after[site].shape
    }
    return [site.name for site, share in changed.items() if share > SMOOTH]


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error, on one line."""
    text = " ".join(str(error).split())
    return text.split(" because it has not been")[0].split(". ")[0].rstrip(".") or type(error).__name__


STEP = 1e-5
"""Length of a finite-difference step relative to that of the sample's input: truncation and rounding in float32
balance near it (Nocedal & Wright 2006, sec. 8.1, would have 4e-3 for smooth functions; kinks of ReLU ask for less)."""

ROUNDING = 10
"""A difference below this many units of rounding of the output is doubtful."""


def finite_differences(stepped: SteppedRun) -> Responses:
    """Return central differences (h(x + s u) - h(x - s u)) / 2s with s = `STEP` ||x||; both runs draw the same numbers.

    Raises:
        Unavailable: when the numbers are too short for differences.
    """
    for value in stepped.start.values():
        if torch.finfo(value.dtype).eps > 1e-6:
            dtype = str(value.dtype).removeprefix("torch.")
            raise Unavailable(f"differences in {dtype} are rounding noise, use model.float() and x.float()")
    responses = Responses()
    for values, steps in stepped.chunks():
        length = step_length(values, STEP)  # (rows,)
        above = outputs_at(stepped, step_values(values, steps, length), stepped.sites)
        stepped.evaluate(
            step_values(values, steps, -length), _difference_reader(responses, above, length, stepped.run.batch)
        )
    return responses


def _difference_reader(
    responses: Responses, above: dict[MeasuredCall, torch.Tensor], length: torch.Tensor, batch: int
) -> Callable[[MeasuredCall, Any], None]:
    """Return a reader of the outputs at the lower end, which adds central differences to `responses`."""

    def read(site: MeasuredCall, output: Any) -> None:
        below, axis = floating(output)[site.main], site.axes[site.main]
        if site not in above or above[site].shape != below.shape:
            return  # the step changed the route
        difference = row_norms(above.pop(site) - below, axis, len(length))
        noise = ROUNDING * torch.finfo(below.dtype).eps * row_norms(below, axis, len(length))
        if bool(((difference > 0) & (difference < noise)).any()):
            responses.doubtful.add(site)
        responses.add(site, below, difference / (2 * length), batch)

    return read


def outputs_at(stepped: SteppedRun, values: Values, sites: list[MeasuredCall]) -> dict[MeasuredCall, torch.Tensor]:
    """Return the outputs of the sites at `values`."""
    outputs: dict[MeasuredCall, torch.Tensor] = {}

    def keep(site: MeasuredCall, output: Any) -> None:
        outputs[site] = floating(output)[site.main].clone()

    stepped.evaluate(values, keep, sites)
    return outputs


def step_length(values: Values, step: float) -> torch.Tensor:
    """Return `step` times the length of each row's input, `(rows,)`; `step` itself where the input is zero."""
    length = step * row_lengths(values)
    return torch.where(length > 0, length, step)


def step_values(values: Values, steps: Values, length: torch.Tensor) -> Values:
    """Return `values` plus `length`, `(rows,)`, times `steps`."""
    return {
        name: value + steps[name] * length.to(value).reshape(-1, *[1] * (value.ndim - 1))
        for name, value in values.items()
    }


_SHARED = (shared_dual_numbers, shared_with_primitive_kernels := _with_primitive_kernels(shared_dual_numbers))
_PRIMITIVE = "dual numbers with plain attention and recurrent kernels"
_ROUTES: tuple[tuple[str, Kind, str, Callable[[SteppedRun], Responses]], ...] = (
    ("forward_ad", "dual", "dual numbers", shared_dual_numbers),
    ("forward_ad", "plain dual", _PRIMITIVE, shared_with_primitive_kernels),
    ("forward_ad", "dual", "dual numbers", dual_numbers),
    ("forward_ad", "plain dual", _PRIMITIVE, _with_primitive_kernels(dual_numbers)),
    ("finite_differences", "differences", f"central finite differences (relative step {STEP:g})", finite_differences),
)
