"""Figures of results: each function takes results and returns one `Plot`. matplotlib is loaded on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..errors import PlotError, choose
from ..results import ActivationMaps, Attribution, LayerProfile, Ledger, Relevance, TopInputs
from .activation_mosaic import activation_mosaic
from .compare_methods import compare_methods
from .heatmap import heatmap
from .layer_profile import layer_profile
from .overlay_grid import overlay_grid
from .plot import Plot
from .relevance_flow import relevance_flow
from .top_inputs import top_inputs

__all__ = [
    "Plot",
    "activation_mosaic",
    "compare_methods",
    "heatmap",
    "layer_profile",
    "overlay_grid",
    "plot",
    "relevance_flow",
    "top_inputs",
]


def _relevance_profile(relevance: Relevance, **options: Any) -> Plot:
    if relevance.profile is None:
        raise PlotError(
            "this relevance has no profile: no layers were asked for. Give layers= to the method, or draw kind='flow'."
        )
    return layer_profile(relevance.profile, **options)


_OF_ATTRIBUTION: Final[dict[str, Callable[..., Plot]]] = {"heatmap": heatmap, "grid": overlay_grid}
FIGURES: Final[dict[type[Any], dict[str, Callable[..., Plot]]]] = {
    Relevance: {**_OF_ATTRIBUTION, "flow": relevance_flow, "profile": _relevance_profile},
    Attribution: _OF_ATTRIBUTION,
    ActivationMaps: {"mosaic": activation_mosaic},
    LayerProfile: {"profile": layer_profile},
    Ledger: {"flow": relevance_flow},
    TopInputs: {"inputs": top_inputs},
}
"""The figures of each result by kind, the usual one first."""


def plot(result: Any, kind: str | None = None, **options: Any) -> Plot:
    """Draw any result that has a figure; `result.plot(kind, ...)` is the same.

    Args:
        result: an Attribution (kinds `"heatmap"`, `"grid"`), Relevance (also `"flow"`, `"profile"`), ActivationMaps
            (`"mosaic"`), LayerProfile (`"profile"`), Ledger (`"flow"`) or TopInputs (`"inputs"`).
        kind: which figure; None takes the first.
        options: go to the function of that figure.

    Raises:
        OptionError: when the result has no figure of that kind.
        PlotError: when it has none at all, or cannot be drawn.

    Example:
        >>> import torch
        >>> profile = LayerProfile("norm", ("stem", "head"), torch.tensor([2.0, 1.0]), "1", False, "exact", {})
        >>> plot(profile, width="column")
        Plot(1 panel, 3.25 x ... in). Keep it: .save('figure.pdf')
    """
    for of, figures in FIGURES.items():
        if isinstance(result, of):
            name = (
                next(iter(figures)) if kind is None else choose(f"figure of a {type(result).__name__}", kind, figures)
            )
            return figures[name](result, **options)
    drawn = ", ".join(of.__name__ for of in FIGURES)
    raise PlotError(f"there is no figure of a {type(result).__name__}. These have one: {drawn}.")
