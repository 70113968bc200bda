"""An answer and its sources as a fragment of HTML: each part of the answer opens without a script."""

from __future__ import annotations

import hashlib
import html
from typing import Final

import numpy as np

from layerlens.errors import PlotError, check_count
from layerlens.results import AnswerAttribution
from layerlens.signatures import public

from .. import style
from ..drawing import intervals
from ..drawing.images import finite_array
from ..style import Array
from ..words import words
from .sources import segments

PROMPT: Final = "white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid #8C8C8C80;padding:.5em .7em"
CELL: Final = "border:1px solid #8C8C8C80;padding:.1em .4em;text-align:left"
RED, BLUE = "178,24,43", "33,102,172"
STRONGEST: Final = 0.55
"""Opacity of the strongest color, through which both dark and light text can be read."""


@public
def sources_html(
    found: AnswerAttribution,
    *,
    count: int | None = 60,
    vmax: float | None = None,
    title: str | None = None,
    table: bool = True,
    interval: float | None = 0.9,
) -> str:
    """Write an answer whose parts open, each onto the prompt colored by its sources, as HTML.

    The fragment has no script and loads nothing: a part opens by a click, or by Tab and Enter. Each source shows its
    number under the pointer; negative ones are underlined; a table at the end has all numbers. Colors are drawn on the
    paper of the page, light or dark. In a notebook: `IPython.display.HTML(sources_html(result))`.

    Args:
        found: an answer and its sources.
        count: most parts that open, from the first; None for all. Each repeats the prompt.
        vmax: value of the strongest color; None takes the largest.
        title: None for the method and the cost, `""` for none.
        table: whether to write the table of all numbers.
        interval: share of the intervals, by normal distribution; a source whose interval includes 0 is pale and has a
            dotted edge. None looks at none.

    Returns:
        A `<div>` with inline styles.

    Raises:
        PlotError: if a value is not a finite number, or all are zero.
        OptionError: if `count` is below 1.

    Example:
        >>> import torch
        >>> one = AnswerAttribution("log p", ("0 Yes.",), ("0 It is.",), torch.ones(1, 1), ("part", "source"), "nats",
        ...                         True, "relevance", {}, prompt="It is. Is <it>?", answer="Yes.", spans=((0, 6),),
        ...                         part_spans=((0, 4),), scores=torch.zeros(1))
        >>> "Is &lt;it&gt;?" in sources_html(one), "<script" in sources_html(one)
        (True, False)
    """
    if count is not None:
        check_count("count", count)
    values = finite_array(found.values, "the attribution of an answer")
    high = float(np.abs(values).max()) if vmax is None else vmax
    if not high > 0:
        raise PlotError("the attribution of an answer is zero everywhere: no color follows from it. Give vmax=.")
    unsettled = intervals.unsettled_of(found, interval)
    name = hashlib.sha256(f"{found.prompt}\0{found.answer}\0{values.tolist()}".encode()).hexdigest()[:10]
    number = len(values) if count is None else min(count, len(values))
    cost = f"{words(found.method)}; {found.passes} passes, {found.seconds:.1f} s"
    heading = cost if title is None else title
    parts = [f"<div>{html.escape(heading)}</div>" if heading else ""]
    for place in range(number):
        best = int(values[place].argmax())
        head = (
            f"<b>{_line(found.parts[place])}</b> <small>log p {style.number(float(found.scores[place]))}; most from "
            f"“{_line(found.sources[best], 60)}” ({html.escape(_number(found, values, place, best))})</small>"
        )
        opened = " open" if not place else ""
        parts.append(
            f'<details name="{name}"{opened}><summary style="cursor:pointer">{head}</summary>'
            f'<div style="{PROMPT}">{_prompt(found, place, values, high, unsettled[place])}</div></details>'
        )
    notes = [f"a part of the answer opens its sources; in {found.units}, strongest color {style.number(high)}"]
    notes += ["underlined: negative"] * bool((values < 0).any())
    notes += intervals.note("dotted", [unsettled[:number]], interval)
    notes += [f"the first {number} of {len(values)} parts"] * (number < len(values))
    parts.append(f"<div><small>{html.escape('; '.join(notes))}</small></div>")
    parts += [_table(found, values)] * table
    return f'<div style="font:14px/1.7 sans-serif;max-width:60em">{"".join(parts)}</div>'


def _prompt(found: AnswerAttribution, part: int, values: Array, high: float, unsettled: Array) -> str:
    """The prompt in the colors of one part."""
    written = []
    for text, source in segments(found):
        if source is None:
            written.append(html.escape(text))
            continue
        value = float(values[part, source])
        opacity = STRONGEST * min(abs(value) / high, 1.0) * (intervals.FADED if unsettled[source] else 1)
        look = f"background:rgba({RED if value > 0 else BLUE},{opacity:.3f})"
        look += ";text-decoration:underline" if value < 0 else ""
        look += f";outline:1px dotted {style.FAINT};outline-offset:-1px" if unsettled[source] else ""
        hover = html.escape(f"source {source}: {_number(found, values, part, source)}")
        written.append(f'<span style="{look}" title="{hover}">{html.escape(text)}</span>')
    return "".join(written)


def _table(found: AnswerAttribution, values: Array) -> str:
    """All numbers, for those who have no pointer."""
    if values.size > 4000:
        return f"<div><small>{values.size} numbers: result.to_pandas()</small></div>"
    head = "".join(f'<th style="{CELL}">{_line(text)}</th>' for text in found.rows)
    rows = ""
    for source, text in enumerate(found.columns):
        cells = [_number(found, values, part, source) for part in range(len(values))]
        row = "".join(f'<td style="{CELL}">{html.escape(cell)}</td>' for cell in cells)
        rows += f'<tr><th style="{CELL}">{_line(text)}</th>{row}</tr>'
    whole = f'<table style="border-collapse:collapse;font-size:12px"><tr><td></td>{head}</tr>{rows}</table>'
    return f"<details><summary>all numbers</summary>{whole}</details>"


def _number(found: AnswerAttribution, values: Array, part: int, source: int) -> str:
    error = "" if found.error is None else f" ± {style.number(float(found.error[part, source]), 2)}"
    return f"{style.number(float(values[part, source]), 4)}{error} {found.units}"


def _line(text: str, most: int = 400) -> str:
    return html.escape(" ".join(text.split())[:most] or "␣")
