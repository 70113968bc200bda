"""A recurrent layer over time: states and gates of its units, and the means of its gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layerlens.errors import OptionError
from layerlens.results import RecurrentStates
from layerlens.results.maps.recurrent_states import GATES

from .. import style
from ..drawing import attribution_sample, images
from ..drawing.canvas import Canvas
from ..drawing.each_sample import Which, each_sample
from ..plot import Plot, figure
from ..style import Array
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

OPEN: Final = style.Limits(0.0, 1.0, False, "")


@figure(RecurrentStates, kind="states", usual=True)
@each_sample(lambda one: len(one.lengths))
def recurrent_states(
    states: RecurrentStates,
    sample: Which = None,
    *,
    layer: int = 0,
    reverse: bool = False,
    quantities: Sequence[str] | None = None,
    count: int = 40,
    width: style.Width = "page",
    cmap: str | None = None,
    clip: float = 99.5,
    title: str | None = None,
    colorbar: bool = True,
    fig: FigureBase | None = None,
) -> Plot:
    """Draw units over time: a heat map for each quantity, and lines for the mean of each gate over all units.

    All maps show the same units: those whose hidden state varies most over the steps, in the order in which their
    hidden state is largest, so that units that act one after the other are on a diagonal.

    Args:
        states: states of a recurrent layer.
        layer: index among the stacked layers.
        reverse: whether to draw the backward direction.
        quantities: quantities from top to bottom; None for all.
        count: number of units.
        cmap: matplotlib colormap for the states; None is RdBu_r, gates are in viridis from 0 to 1.
        title: None for layer and kind, `""` for none.

    Returns:
        The plot; `data` holds each quantity `(unit, time)`, `"units"`, and `"means"` `(gate, time)`.

    Raises:
        OptionError: if there is no such sample, or `count` is below 1.
        PlotError: if a state is not finite.
        RecordError: if there is no such layer, direction or quantity.

    Example:
        >>> import torch
        >>> run = {"hidden": torch.rand(1, 6, 3), "update_gate": torch.rand(1, 6, 3)}
        >>> states = RecurrentStates("rnn", "GRU", {"layer 0": run}, torch.tensor([6]), {})
        >>> recurrent_states(states, count=2).data["update_gate"].shape
        (2, 6)
    """
    if count < 1:
        raise OptionError(f"count={count!r} units; give 1 or more.")
    hidden = states.of("hidden", layer, reverse=reverse)
    row = attribution_sample.sample_index(sample, len(hidden), "the recurrent states")
    steps = int(states.lengths[row])
    names = list(states.quantities if quantities is None else quantities)

    def read(name: str) -> Array:
        values = states.of(name, layer, reverse=reverse)[row, :steps].T
        return images.finite_array(values, f"{name} of sample {row}")  # (unit, time)

    units = _most_varying_units(read("hidden"), count)
    data: dict[str, Any] = {"units": np.array(units)}
    with Canvas(width=width, fig=fig) as canvas:
        way = ", backward" if reverse else ""
        canvas.title(title, f"{states.layer or '(model)'} ({states.kind}), layer {layer}{way}")
        high = min(max(0.035 * len(units), 0.5), 1.4)
        for place, name in enumerate(names):
            values = read(name)
            # a projected LSTM has fewer hidden units than cells: their numbers do not belong together
            chosen = units if len(values) == hidden.shape[-1] else _most_varying_units(values, count)
            data[name] = values[chosen]
            axes = canvas.panel(place, height=high, title=words(name))
            _draw_map(canvas, axes, data[name], name in GATES, cmap, clip, colorbar, name)
            axes.tick_params(labelbottom=False)
        gates = [name for name in names if name in GATES]
        if gates:
            data["means"] = np.stack([read(name).mean(axis=0) for name in gates])
            axes = canvas.panel(len(names), height=0.8)
            _draw_gate_means(canvas, axes, gates, data["means"])
        else:
            axes.tick_params(labelbottom=True)
        _name_steps(axes, steps)
        return canvas.finish(data)


def _most_varying_units(values: Array, count: int) -> list[int]:
    """The units that vary most over time, in the order of the step at which each is largest."""
    best = np.sort(np.argsort(-values.std(axis=1), kind="stable")[:count])
    order: list[int] = best[np.argsort(np.abs(values[best]).argmax(axis=1), kind="stable")].tolist()
    return order


def _draw_map(
    canvas: Canvas, axes: Axes, values: Array, gate: bool, cmap: str | None, clip: float, colorbar: bool, name: str
) -> None:
    limits = OPEN if gate else style.limits([values], signed=True, clip=clip, vmax=None, what=name)
    image = axes.imshow(
        values,
        cmap=style.colormap("viridis" if gate else cmap, signed=True),
        vmin=limits.low,
        vmax=limits.high,
        interpolation="nearest",
        aspect="auto",
    )
    axes.set_yticks([])
    axes.set_ylabel(f"{len(values)} units")
    if colorbar:
        canvas.colorbar([axes], image, limits, "open" if gate else "value", "right")


def _draw_gate_means(canvas: Canvas, axes: Axes, gates: Sequence[str], means: Array) -> None:
    handles: list[Any] = []
    for index, (name, values) in enumerate(zip(gates, means, strict=True)):
        handles += axes.plot(values, color=style.COLORS[index], linestyle=style.LINES[index], label=words(name))
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.5, means.shape[1] - 0.5)
    axes.set_ylabel("mean gate")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    canvas.legend(axes, handles)


def _name_steps(axes: Axes, steps: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("time step")
    axes.xaxis.set_major_locator(MaxNLocator(min(8, steps), integer=True))
