"""A small picture of a result for a notebook, as HTML that brings everything along."""

from __future__ import annotations

import base64
import html
from typing import Any, Final

from layerlens.results import ActivationMaps, AnswerAttribution, AttentionWeights, Attribution, RecurrentStates, Result

from ..drawing import attribution_sample
from ..plot import figures_of, plot
from ..words import words
from .sources_html import sources_html
from .tokens_html import tokens_html

DPI: Final = 144
"""Dots per inch of the picture; it is shown at 96, so that it is sharp on fine screens."""


def thumbnail(result: Result) -> str:
    """Draw the usual figure of a result as an image, or its text with colored tokens; `""` if it has no figure.

    Of a batch it shows the first sample, of several inputs the first, of attention the mean over the heads.

    Args:
        result: any result.

    Returns:
        HTML without script that loads nothing; the text instead of the picture says what the numbers are.

    Raises:
        PlotError: if the result has a figure, but its values cannot be drawn.

    Example:
        >>> import torch
        >>> from layerlens.results import LayerProfile
        >>> profile = LayerProfile("norm", ("stem", "head"), torch.tensor([2.0, 1.0]), "1", False, "exact", {})
        >>> thumbnail(profile)[:40]
        '<img src="data:image/png;base64,iVBORw0K'
    """
    if not figures_of(type(result)):
        return ""
    options: dict[str, Any] = {}
    caption = ""
    if isinstance(result, AnswerAttribution):
        return sources_html(result, count=40, table=False)
    if isinstance(result, Attribution):
        if isinstance(result.values, dict) and not attribution_sample.text_inputs(result):
            options["name"] = next(iter(result.values))
        parts = [f"input {options['name']}"] if options else []
        parts += [f"sample 0 of {len(result.score)}"] if len(result.score) > 1 else []
        caption = ", ".join(parts)
        if attribution_sample.read_texts(result, 0, **options).form == "tokens":
            return f"{tokens_html(result, count=400, **options)}{_caption(caption)}"
    elif isinstance(result, AttentionWeights):
        options["heads"] = "mean"
    if isinstance(result, (ActivationMaps, RecurrentStates)):
        caption = "sample 0"
    drawn = plot(result, **options)
    wide, high = drawn.fig.get_size_inches()
    picture = base64.b64encode(drawn.png(DPI)).decode()
    rows = [(name, words(text) if name == "method" else text) for name, text in result.summary()]
    alt = html.escape("; ".join(f"{name}: {text}" for name, text in rows))
    size = f'width="{round(96 * wide)}" height="{round(96 * high)}" style="max-width:100%;height:auto"'
    return f'<img src="data:image/png;base64,{picture}" alt="{alt}" {size}>{_caption(caption)}'


def _caption(text: str) -> str:
    return f'<div style="font-size:smaller">{html.escape(text)}</div>' if text else ""
