"""A quantity of a training through the depth of the network, at a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from layerlens.errors import OptionError, PlotError, choose
from layerlens.results import LayerProfile, TrainingHistory

from .. import style
from ..plot import Plot, figure
from ..words import words
from .layer_profile import layer_profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORDS = ("first", "middle", "last")
MOST_STEPS = len(style.COLORS)


@figure(TrainingHistory, kind="gradient_flow")
def gradient_flow(
    history: TrainingHistory,
    quantity: str = "gradient norm",
    *,
    steps: Sequence[int | str] = WORDS,
    scale: Literal["linear", "log"] = "log",
    width: style.Width | None = None,
    vmax: float | None = None,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw how a quantity changes through the layers at some steps of a training.

    With the gradient norm it shows whether the gradient reaches the first layers.

    Layers run from top to bottom, values from left to right, with a line for each step. A value without a place on the
    axis (NaN, infinity, zero on a log scale) is written at the left edge, with its step.

    Args:
        history: record of a training.
        quantity: one of the recorded quantities.
        steps: up to 7 measured steps, by number or as `"first"`, `"middle"` or `"last"`.
        width: ... None is the column unless the names are long.
        title: None for the quantity and how it was measured, `""` for none.
        labels: names of the rows instead of the layers' paths.

    Returns:
        The plot; `data["values"]` is `(layers, steps)`.

    Raises:
        OptionError: for an unknown quantity, scale or width, or a step that was not measured.
        PlotError: if nothing was measured, or no value has a place on the scale.

    Example:
        >>> import torch
        >>> from layerlens import watch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with watch(net, optimizer, every=1) as watching:
        ...     for _ in range(4):
        ...         net(torch.ones(8, 4)).square().mean().backward()
        ...         optimizer.step()
        >>> gradient_flow(watching.history, steps=[0, "last"]).data["values"].shape
        (2, 2)
    """
    if not len(history):
        raise PlotError("no step of this training was measured: there is nothing to draw.")
    found = history.of(quantity)
    places = [_step_index(step, history) for step in steps]
    places = list(dict.fromkeys(places))
    if not 1 <= len(places) <= MOST_STEPS:
        raise OptionError(f"steps= names {len(places)} steps; give 1 to {MOST_STEPS}.")
    profile = LayerProfile(
        quantity=quantity,
        layers=found.rows,
        values=found.values[:, places],
        units=found.units,
        signed=found.signed,
        method=found.method,
        settings=history.settings,
        series=tuple(f"step {int(history.steps[place])}" for place in places),
    )
    title = f"{words(quantity)} of each layer, {found.method}" if title is None else title
    return layer_profile(profile, scale=scale, width=width, vmax=vmax, title=title, labels=labels, ax=ax)


def _step_index(step: int | str, history: TrainingHistory) -> int:
    """The position of a step among those measured.

    Raises:
        OptionError: if it was not measured.
    """
    count = len(history)
    if isinstance(step, str):
        return {"first": 0, "middle": (count - 1) // 2, "last": count - 1}[choose("step", step, WORDS)]
    known: list[int] = history.steps.tolist()
    if step not in known:
        near = ", ".join(map(str, sorted(known, key=lambda one: abs(one - step))[:3]))
        raise OptionError(f"step {step!r} was not measured; the nearest that were: {near}.")
    return known.index(step)
