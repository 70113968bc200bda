"""A text with its attribution as a fragment of HTML: nothing is loaded, nothing is run."""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from layerlens.results import Attribution
from layerlens.signatures import public

from .. import style
from ..drawing import intervals, token_text
from ..drawing.attribution_sample import Sample
from ..drawing.each_sample import MOST, Which, sample_label
from ..drawing.token_text import Piece
from ..style import Array
from .tokens import LEFT_OUT, text_color

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

PAPER: Final = f"background:#FFFFFF;color:{style.INK};padding:.6em .8em;border-radius:4px;font:14px/1.9 sans-serif"
"""White paper also on a dark page: the colors of the scale are made for it."""


@public(renamed={"most": "count"})
def tokens_html(
    attribution: Attribution,
    sample: Which = None,
    *,
    count: int | None = None,
    name: str | None = None,
    cmap: str | None = None,
    vmax: float | None = None,
    clip: float = 100.0,
    interval: float | None = 0.9,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    colorbar: bool = True,
) -> str:
    """Write a text whose tokens are colored by their attribution as HTML, for a notebook, a page or a mail.

    Each token shows its value under the pointer, with its interval where it has one; negative tokens
    are underlined, and those whose interval includes 0 are pale, with a dotted edge. The fragment has inline styles and
    no script, every text in it is escaped, and its paper is white on dark pages too. In a notebook:
    `IPython.display.HTML(tokens_html(result))`.

    Args:
        attribution: values `(batch, token)`, or `(batch, word)` from `.by_word()`.
        count: about how many tokens to show, the strongest with their neighbors; None for all.
        cmap: matplotlib colormap; None is RdBu_r for signed values and magma_r, pale for weak, for magnitudes.
        labels: texts of the tokens, if the attribution does not know them.
        sample: which sample of the batch, or a list of them; None writes the first six, each with its scale.
        colorbar: whether to write the scale below.

    Returns:
        A `<div>` for each sample.

    Raises:
        OptionError: if there is no such sample, input name or colormap, or `count` is below 1.
        PlotError: if there is not one number per token, or all are zero.

    Example:
        >>> import torch
        >>> values = torch.tensor([[0.5, -1.0]])
        >>> one = Attribution(values, ("batch", "token"), True, "score", "class 1", "gradient", {}, torch.ones(1),
        ...                   tokens=[["a<b", "."]])
        >>> tokens_html(one).count("<span"), "a&lt;b: 0.5 score" in tokens_html(one)
        (3, True)
    """
    more = 0
    total = len(attribution.score) if isinstance(attribution, Attribution) else 1
    if sample is None:
        sample = list(range(min(total, MOST))) if total > 1 else 0
        more = total - MOST if total > MOST else 0
    if isinstance(sample, Sequence):
        one = functools.partial(
            tokens_html, attribution, count=count, name=name, cmap=cmap, vmax=vmax, clip=clip, title=title,
            interval=interval, labels=labels, colorbar=colorbar,
        )  # fmt: skip
        rest = [f'<div style="{PAPER}">{len(sample)} of {total} samples: sample= chooses others</div>'] if more else []
        return "\n".join([*map(one, sample), *rest])
    shown = token_text.read(attribution, sample, name, labels, interval)
    limits = style.limits([shown.values], signed=shown.signed, clip=clip, vmax=vmax, what=shown.what)
    colors = style.colormap(cmap, signed=shown.signed, unsigned="magma_r")
    found = token_text.pieces_of(shown, count)
    which = f"{sample_label(attribution, sample % total)} of {total}: " if total > 1 else ""
    heading = f"{which}{shown.title}" if title is None else title
    parts = [f'<div style="margin-bottom:.3em">{html.escape(heading)}</div>'] if heading else []
    text = "".join(_token_span(piece, limits, colors, shown.units) for piece in found)
    parts.append(f'<div style="overflow-wrap:anywhere">{text}</div>')
    if colorbar:
        marks = ["underlined: negative"] * any(piece.value < 0 for piece in found)
        marks += intervals.note("dotted", [np.array([piece.unsettled for piece in found])], interval)
        parts.append(_color_scale(limits, colors, shown.units, marks))
    described = html.escape(_described(shown, heading))
    return f'<div role="group" aria-label="{described}" style="{PAPER}">{"".join(parts)}</div>'


def _token_span(piece: Piece, limits: style.Limits, colors: Colormap, units: str) -> str:
    if piece.heading:
        return f"<b>{html.escape(piece.text)}</b>"
    ends = "" if piece.interval is None else " to ".join(style.number(end) for end in piece.interval)
    value = f"{style.number(piece.value)} {units}{f' ({ends})' if ends else ''}"
    if piece.count:
        look, hover = f"background:{LEFT_OUT};color:{style.INK}", f"{piece.count} tokens, sum: {value}"
    else:
        fill = colors(np.clip((piece.value - limits.low) / (limits.high - limits.low), 0, 1))
        (fill,) = intervals.pale(np.array([fill]), np.array([piece.unsettled]))
        ink = "#FFFFFF" if text_color(fill) == "white" else style.INK
        look, hover = f"background:{_hex(fill)};color:{ink}", f"{_visible(piece.text)}: {value}"
    look += ";text-decoration:underline" if piece.value < 0 else ""
    look += f";outline:1px dotted {style.FAINT};outline-offset:-1px" if piece.unsettled else ""
    escaped = html.escape(_visible(piece.text))
    space, end = " " if piece.apart else "", "<br>" if piece.ends else ""
    return f'{space}<span style="{look};padding:.15em .1em" title="{html.escape(hover)}">{escaped}</span>{end}'


def _color_scale(limits: style.Limits, colors: Colormap, units: str, marks: Sequence[str]) -> str:
    stops = ",".join(_hex(colors(place)) for place in np.linspace(0, 1, 9))
    bar = f"display:inline-block;width:12em;height:.7em;margin:0 .5em;background:linear-gradient(to right,{stops})"
    label = ", ".join([units, *[limits.note] * bool(limits.note), *marks])
    low, high = style.number(limits.low), style.number(limits.high)
    return (
        f'<div style="margin-top:.4em;font-size:12px">{low}<span style="{bar}"></span>{high} {html.escape(label)}</div>'
    )


def _described(shown: Sample, heading: str) -> str:
    """The three strongest tokens, for those who do not see the colors."""
    best = np.argsort(-np.abs(shown.values), kind="stable")[:3].tolist()
    names = shown.tokens or ()
    strongest = ", ".join(f"{_visible(names[place])} {style.number(float(shown.values[place]))}" for place in best)
    return f"{heading or shown.what}; strongest of {len(names)} tokens, in {shown.units}: {strongest}"


def _hex(color: Sequence[float] | Array) -> str:
    return "#" + "".join(f"{round(255 * float(part)):02x}" for part in color[:3])


def _visible(token: str) -> str:
    """A token with white space, control characters and marks of direction made visible."""
    shown = re.sub(r"^ +$", lambda found: "␣" * len(found[0]), token).replace("\n", "↵").replace("\t", "⇥")
    letters = (f"\\u{ord(one):04x}" if unicodedata.category(one) in ("Cc", "Cf", "Cs") else one for one in shown)
    return "".join(letters) or "∅"
