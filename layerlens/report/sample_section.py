"""What the analyzers find on one sample, and by layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from layerlens.analyzers.faithfulness import evaluate
from layerlens.analyzers.relevance.relevance import relevance
from layerlens.analyzers.saliency.saliency import saliency
from layerlens.analyzers.sensitivity import jacobian, noise_response
from layerlens.errors import LayerLensError
from layerlens.inputs.inputs import Inputs
from layerlens.model.layers import Selection
from layerlens.results import Attribution, LayerProfile, Relevance
from layerlens.wrapped_model import WrappedModel

from . import checks, figures, provenance
from .content import Block, Check, Note, Panel
from .predictions import largest
from .samples import Sample

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
    """Run relevance, the methods and the controls on one sample; each takes one of the `steps` of the progress bar."""
    model = lens.model
    given: dict[str, Any] = {"target": sample.target, "forward": lens.forward}
    found: list[Attribution] = []
    missing: list[Block] = []
    made: list[Check] = []

    def attribute(title: str, run: Callable[[], Attribution]) -> None:
        next(steps)
        try:
            result = lens.with_tokens(run(), sample.inputs)
        except LayerLensError as error:
            missing.append(Note(title, f"Not possible here: {error}"))
            made.append(checks.missing(f"{title} can be computed", sample.label, error))
            return
        if all(result.method != other.method for other in found):
            found.append(result)
            made.extend(checks.of_attribution(sample, result))

    attribute("relevance", lambda: relevance(model, sample.inputs, layers=layers or (), **given))
    for name, options in methods.items():
        attribute(name, functools.partial(saliency, model, sample.inputs, method=name, **given, **options))
    next(steps)
    if controls and found:
        maps = {one.how: one for one in found}
        try:
            made += checks.of_controls(sample, evaluate(model, sample.inputs, maps, steps=STEPS, **given))
        except LayerLensError as error:
            made += [checks.missing(f"{name} beats its controls", sample.label, error) for name in maps]
    ledgers = [one for one in found if isinstance(one, Relevance)][:1]
    for one in ledgers:
        made.insert(0, checks.of_ledger(sample, one))
    blocks = (*figures.maps(found), *map(figures.flow, ledgers), *missing)
    used = tuple((one.how, provenance.settings_text(one.settings)) for one in found)
    return Panel(sample.label, tuple(_facts(sample, ledgers)), largest(lens, sample), sample.text, blocks, used), made


def _facts(sample: Sample, ledgers: Sequence[Relevance]) -> Iterator[tuple[str, str]]:
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
    yield from provenance.input_facts(sample)


def measure(lens: WrappedModel, name: str, samples: Sequence[Sample], layers: Selection, steps: Iterator[int]) -> Block:
    """One measure by layer, over all samples where they can be joined."""
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
        else f"of {samples[0].label}{'' if whole else ', for the inputs differ in shape'}"
    )
    chance = (
        " The mark is the same model with the entries of every weight tensor shuffled."
        if found.null is not None
        else ""
    )
    return figures.profile(found, title, f"Measured by: {found.method}; {over}.{chance}")


def together(several: Sequence[Inputs]) -> Inputs | None:
    """The samples as one batch, or None where their tensors differ in number or shape."""
    first, *others = (one.tensors() for one in several)
    for other in others:
        if {n: t.shape for n, t in first.items()} != {n: t.shape for n, t in other.items()}:
            return None
    joined = {
        name: torch.cat([tensor, *(other[name] for other in others)]) if tensor.ndim else tensor
        for name, tensor in first.items()
    }
    return several[0].replace(joined)
