"""Where the score went, layer by layer: the ledger of relevance."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layerlens.errors import OptionError
from layerlens.results import Ledger, Relevance
from layerlens.signatures import public

from .. import style
from ..drawing import attribution_sample, bars, images
from ..drawing.canvas import Canvas
from ..plot import Plot, figure
from ..style import Array
from ..words import words

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes

ENDS: Final = "#4D4D4D"


@dataclasses.dataclass
class Row:
    """One bar: `additive` and `absorbed` of a layer, or `whole` of an `end`: the score or an input."""

    name: str
    additive: float = 0.0
    absorbed: float = 0.0
    whole: float = 0.0
    flow: float = np.nan
    end: bool = False

    @property
    def total(self) -> float:
        """The sum of the bar's parts."""
        return self.additive + self.absorbed + self.whole

    @property
    def size(self) -> float:
        """How much the row matters: opposite parts do not cancel."""
        return abs(self.additive) + abs(self.absorbed) + abs(self.whole)


@figure(Relevance, kind="flow")
@figure(Ledger, kind="flow", usual=True)
@public(renamed={"most": "count"})
def relevance_flow(
    relevance: Relevance | Ledger,
    sample: int | None = None,
    *,
    count: int = 24,
    width: style.Width = "page",
    vmax: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw the ledger from the score at the top, against the order of execution, down to the inputs.

    Each layer has a bar of the relevance that went to its additive constants and one of what its rules absorbed; the
    number at the right is their sum. All rows, with the residual, add up to the score. If layers were asked for, a line
    shows the relevance at their outputs, still flowing to the inputs.

    Args:
        relevance: the result, or its ledger.
        sample: which sample of the batch; None sums over all of them, and says so.
        count: layers with their own row; the smaller ones are added up in one row.

    Returns:
        The plot; `data` holds the rows as drawn: `"name"`, `"additive"`, `"absorbed"`, `"whole"`, `"flow"` and `"end"`.

    Raises:
        OptionError: if there is no such sample, or `count` is below 1.
        PlotError: if an amount is not finite.

    Example:
        >>> import torch
        >>> from layerlens.results import Entry
        >>> amounts = {"input": ("", 2.0), "additive": ("head", 0.5), "absorbed": ("stem", 0.1)}
        >>> entries = tuple(Entry(kind, layer, "x", torch.tensor([a])) for kind, (layer, a) in amounts.items())
        >>> relevance_flow(Ledger(torch.tensor([2.6]), entries)).data["name"].tolist()
        ['score', 'stem', 'head', 'input x']
    """
    if count < 1:
        raise OptionError(f"count={count!r} layers; give 1 or more.")
    ledger = relevance.ledger if isinstance(relevance, Relevance) else relevance
    if sample is not None:
        sample = attribution_sample.sample_index(sample, len(ledger.score), "the ledger")
    rows = _rows(relevance, ledger, sample, count)
    data = {
        field.name: np.array([getattr(row, field.name) for row in rows]) for field in dataclasses.fields(Row)
    }  # fmt: skip
    automatic = "Ledger of relevance"
    if isinstance(relevance, Relevance):
        shown = relevance.target if sample is None else relevance.target_of(sample)
        several = f"sample {sample} of {len(ledger.score)}: " if sample is not None and len(ledger.score) > 1 else ""
        automatic = f"{several}{words(relevance.method)}, {shown}"
    with Canvas(width=width, ax=ax) as canvas:
        canvas.title(title, automatic, _note(ledger, sample))
        axes = canvas.panel()
        canvas.panels[-1].height = bars.name_rows(axes, [row.name for row in rows], canvas.width)
        unit = relevance.units if isinstance(relevance, Relevance) else "score"
        bars.value_axis(axes, f"relevance ({unit})")
        canvas.legend(axes, _draw(axes, data, rows))
        if vmax is not None:
            axes.set_xlim(-vmax, vmax)
        return canvas.finish(data)


def _rows(relevance: Relevance | Ledger, ledger: Ledger, sample: int | None, count: int) -> list[Row]:
    def amount(values: torch.Tensor, what: str) -> float:
        array = images.finite_array(values, what)
        return float(array.sum(dtype=np.float64) if sample is None else array[sample])

    score = Row("score", whole=amount(ledger.score, "the score"), end=True)
    ends: dict[str, Row] = {}
    layers: list[Row] = []
    inputs = [entry for entry in ledger.entries if entry.kind == "input"]
    alone = len({entry.source for entry in inputs}) == 1 and inputs[0].source.isdigit()  # its position says nothing
    for entry in inputs:
        name = "input" if alone else f"input {entry.source}".strip()
        row = ends.setdefault(name, Row(name, end=True))
        row.whole += amount(entry.amount, f"the amount of {name}")
    for name, amounts in ledger.by_layer().items():
        parts = {kind: amount(values, f"the {kind} amount of {name}") for kind, values in amounts.items()}
        if any(parts.get(kind) for kind in ("additive", "absorbed")):
            layers.append(Row(name, parts.get("additive", 0.0), parts.get("absorbed", 0.0)))
    _attach_flow(relevance, layers, sample)
    layers.reverse()
    kept, others = bars.strongest(np.array([row.size for row in layers]), count)
    shown = [layers[index] for index in kept]
    if others:
        small = [layers[index] for index in others]
        shown.append(
            Row(f"{len(small)} smaller layers", sum(row.additive for row in small), sum(row.absorbed for row in small))
        )
    return [score, *shown, *ends.values()]


def _attach_flow(relevance: Relevance | Ledger, layers: list[Row], sample: int | None) -> None:
    """Give each row the relevance at its layer's output.

    A container of layers has no entries of its own: its output is that of the last row inside it.
    """
    profile = relevance.profile if isinstance(relevance, Relevance) else None
    if profile is None or (sample is not None and len(relevance.score) > 1):
        return  # a profile is summed over the batch
    sums = profile.values.reshape(len(profile), -1)[:, 0].tolist()
    for name, value in zip(profile.layers, sums, strict=True):
        inside = [row for row in layers if row.name == name or row.name.startswith(f"{name}.")]
        if inside:
            inside[-1].flow = float(value)


def _draw(axes: Axes, data: dict[str, Array], rows: list[Row]) -> list[Any]:
    places = np.arange(len(rows))
    handles: list[Any] = []
    axes.barh(places, data["whole"], height=0.72, color=ENDS, linewidth=0)
    both = (data["additive"] != 0) & (data["absorbed"] != 0)
    for name, color, hatch, shift, label in (
        ("additive", style.COLORS[4], "", -0.19, "to additive constants"),
        ("absorbed", style.COLORS[3], "/////", 0.19, "absorbed by rules"),
    ):
        if data[name].any():
            # a layer with both kinds shows them one above the other: opposite amounts must not hide each other
            bar = axes.barh(
                places + shift * both, data[name], height=np.where(both, 0.36, 0.72), color=color, hatch=hatch,
                edgecolor="white" if hatch else color, linewidth=0, label=label,
            )  # fmt: skip
            handles.append(bar)
    flow = np.isfinite(data["flow"])
    if flow.any():
        handles += axes.plot(
            data["flow"][flow], places[flow], color=style.COLORS[0], linewidth=0.9, marker="o", markersize=2.6,
            label="still flowing, at the layer's output",
        )  # fmt: skip
    for place, row in zip(places, rows, strict=True):
        axes.annotate(
            style.number(row.total), (1, place), xycoords=("axes fraction", "data"), xytext=(34, 0),
            textcoords="offset points", ha="right", va="center_baseline", fontsize=style.SMALL,
            fontweight="bold" if row.end else "normal", annotation_clip=False,
        )  # fmt: skip
        if place and row.end != rows[place - 1].end:
            axes.axhline(place - 0.5, color=style.FAINT, linewidth=0.5)
    return handles


def _note(ledger: Ledger, sample: int | None) -> str:
    def text(values: torch.Tensor) -> str:
        return style.number(float(values.sum() if sample is None else values[sample]))

    score, inputs = (
        float(part.double().sum() if sample is None else part[sample]) for part in (ledger.score, ledger.inputs)
    )
    gap = f"{style.number(100 * abs(score - inputs) / abs(score))}%" if score else "undefined"
    worst = ledger.worst if sample is None else sample
    where = f"sum of {len(ledger.score)} samples" if sample is None and len(ledger.score) > 1 else "score"
    return (
        f"{where} {style.number(score)} = inputs {text(ledger.inputs)} + additive {text(ledger.additive)} + absorbed "
        f"{text(ledger.absorbed)} + residual {text(ledger.residual)}; conservation gap {gap}, relative residual "
        f"{style.number(float(ledger.relative[worst]), 2)}"
    )
