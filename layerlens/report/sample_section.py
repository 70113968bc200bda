"""The section of one sample, and measures by layer: run the analyzers and draw what they find."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from layerlens.analyzers.checks import check_gradient
from layerlens.analyzers.faithfulness import evaluate
from layerlens.analyzers.relevance.relevance import relevance
from layerlens.analyzers.saliency.saliency import saliency
from layerlens.analyzers.sensitivity import jacobian, noise_response
from layerlens.errors import LayerLensError, TargetError
from layerlens.inputs.inputs import Inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.results import Attribution, LayerProfile, Relevance
from layerlens.targets.outputs import main_output
from layerlens.targets.tokens import Vocabulary
from layerlens.wrapped_model import WrappedModel

from . import checks, figures, provenance
from .content import Block, Check, Note, Panel
from .samples import Sample

MOST_OUTPUTS = 5
STEPS = 16
"""Points of an insertion or deletion curve of the controls."""

PROFILES: dict[str, tuple[str, Callable[..., LayerProfile], dict[str, Any]]] = {
    "jacobian": ("Which layers respond most to the input", jacobian, {"null": True}),
    "noise_response": ("Which layers the output depends on", noise_response, {"levels": (0.5,)}),
}
"""Measures by layer: title, function and options."""


def examine(
    lens: WrappedModel,
    sample: Sample,
    methods: Mapping[str, Mapping[str, Any]],
    layers: Selection,
    controls: bool,
    steps: Iterator[int],
) -> tuple[Panel, list[Check]]:
    """Run relevance, the methods and the controls on one sample, each as one of the `steps` of the progress bar."""
    model = lens.model
    given: dict[str, Any] = {"target": sample.target, "forward": lens.forward}
    found: list[Attribution] = []
    missing: list[Block] = []
    made: list[Check] = []
    times: dict[str, float] = {}
    forward_time = _forward_time(lens, sample)

    def attribute(title: str, run: Callable[[], Attribution]) -> None:
        next(steps)
        start = _now()
        try:
            result = lens.with_tokens(run(), sample.inputs)
        except LayerLensError as error:
            missing.append(Note(title, f"Not possible here: {error}"))
            made.append(checks.missing(f"{title} can be computed", sample.label, error))
            return
        if all(result.method != other.method for other in found):
            times[title] = (_now() - start) / forward_time
            found.append(result)
            made.extend(checks.of_attribution(sample, result) + checks.of_sum(sample, result))

    attribute("relevance", lambda: relevance(model, sample.inputs, layers=layers or (), **given))
    for name, options in methods.items():
        attribute(name, functools.partial(saliency, model, sample.inputs, method=name, **given, **options))
    made += checks.of_agreement(sample, found)
    next(steps)
    if controls and found:
        maps = {one.how: one for one in found}
        try:
            made += checks.of_controls(sample, evaluate(model, sample.inputs, maps, steps=STEPS, **given))
        except LayerLensError as error:
            made += [checks.missing(f"{name} beats its controls", sample.label, error) for name in maps]
    ledgers = [one for one in found if isinstance(one, Relevance)][:1]
    try:
        made.insert(0, checks.of_gradient(sample, check_gradient(model, sample.inputs, **given)))
    except LayerLensError as error:
        made.insert(0, checks.missing("The gradient agrees with finite differences", sample.label, error))
    for one in ledgers:
        made.insert(0, checks.of_ledger(sample, one))
    blocks = (*figures.maps(found), *map(figures.flow, ledgers), *missing)
    used = tuple((one.how, provenance.settings_text(one.settings)) for one in found)
    outputs = largest_outputs(lens, sample)
    facts = tuple(_facts(sample, ledgers, times))
    return Panel(sample.label, facts, outputs, sample.text, blocks, used, times, tuple(found)), made


def _now() -> float:
    """The time in seconds, after the GPU has finished."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return time.perf_counter()


def _forward_time(lens: WrappedModel, sample: Sample) -> float:
    """Seconds of one forward pass, the median of three."""
    seconds = []
    with borrowed(lens.model, grad=False), torch.no_grad():
        for _ in range(3):
            start = _now()
            sample.inputs.run(lens.model, lens.forward)
            seconds.append(_now() - start)
    return statistics.median(seconds)


def _facts(sample: Sample, ledgers: Sequence[Relevance], times: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    yield "target", sample.target.label
    if sample.score is not None:
        yield "score", f"{sample.score:.6g}"
    for one in ledgers:
        ledger = one.ledger
        amounts = (ledger.inputs, ledger.additive, ledger.absorbed)
        names = ("relevance in the input", "in additive constants", "absorbed by rules")
        yield from ((name, f"{float(amount[0]):.6g}") for name, amount in zip(names, amounts, strict=True))
        yield "residual", f"{float(ledger.residual[0]):.2e}"
        yield "conservation gap of the map alone", f"{float(ledger.gap[0]):.1%}"
    if times:
        yield "time in forward passes", ", ".join(f"{name} {value:.1f}" for name, value in times.items())
    yield from provenance.input_facts(sample)


def measure(lens: WrappedModel, name: str, samples: Sequence[Sample], layers: Selection, steps: Iterator[int]) -> Block:
    """Run and draw one measure by layer, over all samples if they can be joined."""
    next(steps)
    title, function, options = PROFILES[name]
    if name == "noise_response" and lens.class_names is None:  # two columns and more need not be classes
        options = {**options, "metric": "relative_change"}
    try:
        batch = together([sample.inputs for sample in samples])
        whole = batch is not None
        found = function(lens.model, batch if whole else samples[0].inputs, layers, forward=lens.forward, **options)
    except LayerLensError as error:
        return Note(title, f"Not possible here: {error}")
    over = (
        f"mean over {len(samples)} samples"
        if whole and len(samples) > 1
        else f"of {samples[0].label}{'' if whole else ', because the inputs differ in shape'}"
    )
    chance = (
        " The mark is the same model with the entries of every weight tensor shuffled."
        if found.null is not None
        else ""
    )
    return figures.profile(found, name, title, f"Measured by: {found.method}; {over}.{chance}")


def together(several: Sequence[Inputs]) -> Inputs | None:
    """Return the samples as one batch, or None if their tensors differ in number or shape."""
    first, *others = (one.tensors() for one in several)
    for other in others:
        if {n: t.shape for n, t in first.items()} != {n: t.shape for n, t in other.items()}:
            return None
    joined = {
        name: torch.cat([tensor, *(other[name] for other in others)]) if tensor.ndim else tensor
        for name, tensor in first.items()
    }
    return several[0].replace(joined)


def largest_outputs(lens: WrappedModel, sample: Sample) -> tuple[tuple[str, str, str], ...]:
    """Return the largest outputs of one sample: name, value, and the softmax share of classes or tokens.

    For an output `(1, classes)`, or the last position of `(1, position, vocabulary)` if there is a tokenizer; empty for
    any other.
    """
    try:
        values = main_output(sample.output).detach()
    except TargetError:  # several tensors, of which the target reads what it wants
        return ()
    words = lens.tokenizer is not None and values.ndim == 3 and lens.class_names is None
    if words:
        values = values[:, -1]
    if values.ndim != 2 or values.shape[1] < 2 or values.is_complex():
        return ()
    row = values[0].double().cpu()
    shares = torch.softmax(row, dim=0) if words or lens.class_names is not None else None
    if shares is not None and bool((row >= 0).all()) and abs(float(row.sum()) - 1) < 1e-3:
        shares = row  # the model returns shares itself
    best = row.topk(min(MOST_OUTPUTS, len(row)))
    tokens = Vocabulary(lens.tokenizer) if words and lens.tokenizer is not None else None
    return tuple(
        (
            lens.target(index, sample.inputs).label if tokens is None else tokens[index],
            f"{value:.4g}",
            "" if shares is None else f"{float(shares[index]):.1%}",
        )
        for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )
