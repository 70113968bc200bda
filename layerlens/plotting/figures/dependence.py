"""How the attribution of a feature of a table depends on the feature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerlens.errors import OptionError, PlotError, choose
from layerlens.results import Attribution

from .. import style
from ..drawing import bars, intervals, table_rows
from ..drawing.canvas import Canvas
from ..plot import Plot, figure
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure(Attribution, kind="dependence")
def dependence(
    attribution: Attribution,
    feature: str | int | None = None,
    *,
    color: str | int | None = None,
    name: str | None = None,
    width: style.Width = "column",
    cmap: str | None = None,
    interval: float | None = 0.9,
    title: str | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Plot:
    """Draw the values of one feature of a table against the feature: a point for each sample.

    A cloud that is not a line is an effect that depends on other features: `color=` shows one of them. Where
    values have an error, points whose interval includes 0 are hollow.

    Args:
        attribution: values `(batch, feature)`, with the inputs.
        feature: name or number of the feature; None is the one with the largest mean |value|.
        color: name or number of the feature that colors the points; None colors none.
        cmap: matplotlib colormap; None is viridis.
        title: None for the method and the target, `""` for none.

    Returns:
        The plot; `data` holds `"feature"` and `"values"`, `(batch,)` each, and `"color"` if it was asked for.

    Raises:
        OptionError: if there is no such feature, input name or colormap.
        PlotError: if this is not the attribution of a table, its inputs are not kept, or values are not finite.

    Example:
        >>> import torch
        >>> x = torch.tensor([[45.0, 21.5], [30.0, 24.0]])
        >>> found = Attribution(x * 0.1, None, True, "score", "price", "kernel_shap", {}, torch.ones(2), inputs=x)
        >>> dependence(found.named(["age", "bmi"]), "bmi").data["feature"].tolist()
        [21.5, 24.0]
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    table = table_rows.read(attribution, name, interval)
    if table.inputs is None:
        raise PlotError(
            f"the {attribution.method} attribution keeps no inputs to draw along. Add them: "
            "dataclasses.replace(result, inputs=x)."
        )
    chosen = int(np.abs(table.values).mean(axis=0).argmax()) if feature is None else _index(table, feature)
    values, along = table.values[:, chosen], table.inputs[:, chosen]
    data: dict[str, Any] = {"feature": along, "values": values}
    with Canvas(width=width, ax=ax) as canvas:
        hollow = None if table.widths is None else intervals.unsettled(values, table.widths[:, chosen])
        notes = [f"{len(values)} samples", *intervals.note("hollow", [hollow], interval)]
        canvas.title(title, f"{words(attribution.how)}, {attribution.target}", "; ".join(notes))
        axes = canvas.panel(height=0.6 * canvas.width)
        colors: Any = style.COLORS[0]
        if color is not None:
            shown = _index(table, color)
            data["color"] = table.inputs[:, shown]
            low, high = float(data["color"].min()), float(data["color"].max())
            limits = style.Limits(low, high if high > low else low + 1, False, "")
            scale = ScalarMappable(
                Normalize(limits.low, limits.high), style.colormap(cmap, signed=False, unsigned="viridis")
            )
            colors = scale.to_rgba(data["color"])
            if colorbar:
                canvas.colorbar([axes], scale, limits, table.names[shown], "right")
        table_rows.draw_points(axes, along, values, size=6, colors=colors, hollow=hollow)
        axes.axhline(0, color=style.FAINT, linewidth=0.6, zorder=0)
        axes.set_xlabel(table.names[chosen])
        axes.set_ylabel(f"attribution of {table.names[chosen]} ({attribution.units})")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        bars.number_format(axes)
        return canvas.finish(data)


def _index(table: table_rows.Table, feature: str | int) -> int:
    """The number of a feature.

    Raises:
        OptionError: if there is no such feature.
    """
    count = len(table.names)
    if isinstance(feature, str):
        return table.names.index(choose("feature", feature, table.names))
    if isinstance(feature, bool) or not -count <= feature < count:
        raise OptionError(f"feature {feature!r}: there are {count} (0 to {count - 1}), or give a name.")
    return feature % count
