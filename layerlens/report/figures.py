"""The figures of a report, each with its alternative text and its caption, or the reason why it cannot be drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch

from layerlens import plotting
from layerlens.errors import PlotError
from layerlens.plotting import style
from layerlens.plotting.drawing import attribution_sample as shown_samples, intervals
from layerlens.plotting.words import words
from layerlens.results import Attribution, LayerProfile, Relevance

from . import alt_text
from .content import Block, Note, Picture, Strip, Token

INTERVAL: Final = 0.9
"""Share of the intervals of what is drawn."""
MOST_LINES: Final = 8
"""Channels of a series that are drawn as lines."""


def maps(attributions: Sequence[Attribution]) -> list[Block]:
    """Draw all maps of one sample: images next to the input, texts as strips, anything else one below the other."""
    if not attributions:
        return []
    blocks: list[Block] = []
    for name in _names(attributions[0]):
        called, form = "" if name is None else f" for {name}", _form(attributions[0], name)
        if form == "image":
            title = "Maps of the input" + ("" if name is None else f" {name}")
            blocks.append(_drawn(title, partial(_images, attributions, name, title)))
            continue
        if form not in ("tokens", None) and not _lines(attributions[0], name):
            blocks.append(_drawn(f"Input{called}", partial(_input, attributions[0], name, f"Input{called}")))
        for one in attributions:
            title = f"{words(one.how)}{called}"
            blocks.append(_drawn(title, partial(_single, one, name, title)))
    return blocks


def flow(relevance: Relevance) -> Block:
    """Draw the ledger of one sample."""

    def draw() -> Picture:
        plot = plotting.relevance_flow(relevance, title="")
        flows = bool(np.isfinite(plot.data["flow"]).any())
        line = " The line is the relevance that is left at the outputs of layers." if flows else ""
        return Picture.of(
            plot,
            "ledger",
            "Where the score went",
            alt_text.of_ledger(relevance.ledger, plot),
            "The ledger of relevance: what each layer's additive constants (biases, shifts, running means) took of the "
            f"score on its way back to the input, and what rules absorbed. All rows add up to the score.{line}",
        )

    return _drawn("Where the score went", draw)


def profile(found: LayerProfile, name: str, title: str, note: str) -> Block:
    """Draw a measure by layer."""

    def draw() -> Picture:
        parts = [part.double().flatten() for part in (found.values, found.null) if part is not None]
        finite = torch.cat(parts)[torch.cat(parts).isfinite()]
        spread = len(finite) > 1 and bool((finite > 0).all()) and float(finite.max() / finite.min()) > 30
        plot = plotting.layer_profile(found, scale="log" if spread else "linear", width="page", title="")
        text = found.explain() if any(found.explanation) else f"{words(found.quantity)}, in units of {found.units}."
        return Picture.of(plot, name, title, alt_text.of_profile(found), f"{text} {note}".strip())

    return _drawn(title, draw)


def _drawn(title: str, draw: Callable[[], Block]) -> Block:
    try:
        return draw()
    except PlotError as error:
        return Note(title, f"Not drawn: {error}")


def _images(attributions: Sequence[Attribution], name: str | None, title: str) -> Picture:
    plot = plotting.compare_methods(attributions, name=name, title="")
    shown = [shown_samples.read(one, 0, name=name) for one in attributions]
    described = " ".join(alt_text.of_map(one, other.how) for one, other in zip(shown, attributions, strict=True))
    signs = "Red speaks for the target, blue against it; " if any(one.signed for one in attributions) else ""
    caption = f"{signs}each map has its own scale, at its bar. {_hows(attributions)}"
    return Picture.of(
        plot, _file("saliency", name), title, f"The input and {len(shown)} map(s) of it. {described}", caption
    )


def _input(attribution: Attribution, name: str | None, title: str) -> Picture:
    inputs = attribution.inputs if name is None else (attribution.inputs or {}).get(name)  # type: ignore[union-attr]
    if not isinstance(inputs, torch.Tensor):
        raise PlotError("the result keeps no input of the form of its values.")
    values = inputs.float()
    signed = bool((values < 0).any())
    settings: dict[str, Any] = {
        "units": "input",
        "method": "input",
        "target": "",
        "targets": None,
        "tokens": None,
        "checks": {},
    }
    fields = {field.name: getattr(attribution, field.name) for field in dataclasses.fields(Attribution)}
    given = Attribution(**{**fields, **settings, "values": values, "inputs": None, "signed": signed})
    if given.axes is None and _form(attribution) == "series":
        given = dataclasses.replace(given, axes=("batch", "time", "feature"))
    plot = plotting.heatmap(given, width=_width(given, None), title="", cmap=None if signed else "viridis")
    alt = alt_text.of_map(shown_samples.read(given, 0), "Input")
    return Picture.of(plot, _file("input", name), title, alt, "The input as the model gets it.")


def _single(one: Attribution, name: str | None, title: str) -> Block:
    shown = shown_samples.read(one, 0, name=name, interval=INTERVAL)
    if shown.form == "tokens" and shown.tokens is not None:
        limits = style.limits([shown.values], signed=shown.signed, clip=100, vmax=None, what=shown.what)
        unsettled = np.zeros(len(shown.values), dtype=bool) if shown.unsettled is None else shown.unsettled
        tokens = tuple(
            Token(
                text.translate(alt_text.PRESENT) or "∅",
                style.number(float(value), 2),
                color((intervals.FADED if unsure else 1) * float(value) / limits.high),
                not unsure,
            )
            for text, value, unsure in zip(shown.tokens, shown.values, unsettled.tolist(), strict=True)
        )
        marks = "".join(f"; {mark}" for mark in intervals.note("dotted", [unsettled], INTERVAL))
        signs = "red speaks for the target, blue against it" if shown.signed else "the redder, the larger"
        scale = f"{signs}, full at {style.number(limits.high)}{marks}"
        return Strip(title, f"The number below each token is its value in units of {shown.units}; {scale}. "
                     f"{alt_text.of_values(shown)}.{_checked(one)}", tokens)  # fmt: skip
    caption = _hows([one])
    if _lines(one, name):
        plot = plotting.timeseries(one, name=name, count=MOST_LINES, title="")
        signs = "red where it speaks for the target, blue against it" if one.signed else "the darker, the larger"
        caption = (
            f"The line is the input, channel by channel; the colors are the values of the steps, {signs}. {caption}"
        )
    else:
        plot = plotting.heatmap(one, name=name, width=_width(one, name), title="")
    return Picture.of(plot, _file(one.how, name), title, alt_text.of_map(shown, one.how), caption)


def color(share: float) -> str:
    """Return a color from white to red, or to blue for a negative share, pale enough for dark text.

    Example:
        >>> color(0.0), color(1.0)
        ('rgb(255 255 255)', 'rgb(213 128 138)')
    """
    end = style.POSITIVE if share >= 0 else style.NEGATIVE
    weight = 0.55 * min(abs(share), 1.0)
    parts = (int(end[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgb({' '.join(str(round(255 + weight * (part - 255))) for part in parts)})"


def _hows(attributions: Sequence[Attribution]) -> str:
    return " ".join(f"{words(one.how)}, in units of {one.units}.{_checked(one)}" for one in attributions)


def _checked(one: Attribution) -> str:
    """The checks of a method and why it was chosen, as sentences with a space before each."""
    checks = "; ".join(f"{name} {float(value.reshape(-1)[0]):.3g}" for name, value in one.checks.items())
    chosen = one.settings.get("chosen")
    sentences = [f"{checks[:1].upper()}{checks[1:]}."] if checks else []
    sentences += [f"Chosen by auto: {chosen}."] if isinstance(chosen, str) else []
    return "".join(f" {sentence}" for sentence in sentences)


def _file(what: str, name: str | None) -> str:
    return what if name is None else f"{what}_{name}"


def _names(attribution: Attribution) -> list[str | None]:
    return [None] if isinstance(attribution.values, torch.Tensor) else list(attribution.values)


def _form(attribution: Attribution, name: str | None = None) -> str | None:
    try:
        return shown_samples.read(attribution, 0, name=name).form
    except PlotError:
        return None


def _lines(attribution: Attribution, name: str | None) -> bool:
    """Whether this is a series with few enough channels to draw each as a line instead of a heat map."""
    if _form(attribution, name) != "series":
        return False
    inputs = attribution.inputs if name is None else (attribution.inputs or {}).get(name)  # type: ignore[union-attr]
    shown = shown_samples.read(attribution, 0, name=name)
    return isinstance(inputs, torch.Tensor) and len(shown.values) <= MOST_LINES


def _width(attribution: Attribution, name: str | None) -> style.Width:
    return "column" if _form(attribution, name) == "image" else "page"
