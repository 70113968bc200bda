"""The score while places are removed or inserted: one curve, or several methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlens.errors import OptionError, PlotError, choose
from layerlens.results import FaithfulnessCurve

from .. import style
from ..drawing.canvas import Canvas
from ..drawing.image_panels import unique_key
from ..drawing.images import finite_array
from ..plot import Plot, figure
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure(FaithfulnessCurve, kind="curve", usual=True)
def faithfulness_curve(
    curves: FaithfulnessCurve | Sequence[FaithfulnessCurve],
    *,
    labels: Sequence[str] | None = None,
    panels: Sequence[str] | None = None,
    controls: Sequence[str] = (),
    width: style.Width | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw one curve or several: the mean over samples as a line, its standard error as a band.

    Args:
        curves: one or several, with the same units.
        labels: names of the curves; None for metric and fill. The same name in several panels has the same line, and
            one entry in the legend.
        panels: title of each curve's panel, such as `"insertion"` and `"deletion"`; None draws all in one.
        controls: labels to draw in gray.
        width: ... None is the page for several panels.
        title: None for the target, `""` for none.
        ax: axes to draw one panel into; None makes a figure.

    Returns:
        The plot; `data` holds the means by label, or by panel and label: `"insertion: gradient"`.

    Raises:
        OptionError: if no curve has the name of a control, or several panels do not fit `ax`.
        PlotError: if there is nothing to draw, the units differ, or names and curves do not agree in number.

    Example:
        >>> import torch
        >>> shares = torch.linspace(0, 1, 5).double()
        >>> curves = [
        ...     FaithfulnessCurve(name, shares, torch.rand(3, 5).double(), "blur", "probability", "class 7", {})
        ...     for name in ("insertion", "deletion")
        ... ]
        >>> list(faithfulness_curve(curves).data)
        ['insertion (blur)', 'deletion (blur)']
    """
    shown = [curves] if isinstance(curves, FaithfulnessCurve) else list(curves)
    if not shown or not all(isinstance(one, FaithfulnessCurve) for one in shown):
        raise PlotError("faithfulness_curve draws one FaithfulnessCurve or more.")
    if len({one.units for one in shown}) > 1:
        raise PlotError(f"the curves have different units: {', '.join(one.units for one in shown)}.")
    names = [f"{one.name} ({one.fill})" for one in shown] if labels is None else list(labels)
    if len(names) != len(shown):
        raise PlotError(f"{len(names)} label(s) were given for {len(shown)} curve(s).")
    places = [""] * len(shown) if panels is None else list(panels)
    if len(places) != len(shown):
        raise PlotError(f"{len(places)} panel(s) were given for {len(shown)} curve(s).")
    titles = list(dict.fromkeys(places))
    if ax is not None and len(titles) > 1:
        raise OptionError(f"ax= holds one panel, and there are {len(titles)}: leave it out, or draw one at a time.")
    lines = _line_styles(names, controls)
    data: dict[str, Any] = {}
    with Canvas(width=width or ("column" if len(titles) == 1 else "page"), ax=ax) as canvas:
        targets, counts = {one.target for one in shown}, sorted({len(one.scores) for one in shown})
        note = f"Mean of {' or '.join(map(str, counts))} samples; band: standard error." if counts[-1] > 1 else ""
        canvas.title(title, targets.pop() if len(targets) == 1 else "", note)
        drawn = {name: canvas.panel(1, column, height=1.7, title=name) for column, name in enumerate(titles)}
        handles: dict[str, Any] = {}
        for one, name, place in zip(shown, names, places, strict=True):
            axes, shares = drawn[place], finite_array(one.shares, f"the shares of {name!r}")
            scores = finite_array(one.scores, f"the curve of {name!r}")
            mean = scores.mean(axis=0)
            data[unique_key(f"{place}: {name}" if place else name, data)] = mean
            (line,) = axes.plot(shares, mean, label=name if labels is not None else words(name), **lines[name])
            handles.setdefault(name, line)
            if len(scores) > 1:
                error = scores.std(axis=0, ddof=1) / np.sqrt(len(scores))
                color = lines[name]["color"]
                axes.fill_between(shares, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
        _share_axes(list(drawn.values()), shown[0].units)
        if len(titles) == 1:
            canvas.legend(axes, list(handles.values()))
        else:
            canvas.key(0, list(handles.values()))
        return canvas.finish(data)


def _share_axes(panels: Sequence[Axes], units: str) -> None:
    """Give all panels the same axes, with numbers at the left one."""
    from matplotlib.ticker import FuncFormatter

    low, high = (pick(axes.get_ylim()[end] for axes in panels) for end, pick in enumerate((min, max)))
    panels[0].set_ylabel(units)
    for column, axes in enumerate(panels):
        axes.set_xlim(0, 1)
        axes.set_ylim(low, high)
        axes.set_xlabel("share of the places")
        axes.tick_params(axis="y", labelleft=column == 0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)


def _line_styles(names: Sequence[str], controls: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How each name is drawn: colors in turn for methods, grays for controls, another stroke for each."""
    for name in controls:
        choose("control", name, dict.fromkeys(names))
    found: dict[str, dict[str, Any]] = {}
    for gray in (False, True):
        group = [name for name in dict.fromkeys(names) if (name in controls) == gray]
        colors = [style.FAINT] if gray else style.COLORS
        for index, name in enumerate(group):
            color, stroke = colors[index % len(colors)], style.LINES[index % len(style.LINES)]
            found[name] = {"color": color, "linestyle": stroke}
    return found
