"""Figures of results: each function takes results and returns one `Plot`. matplotlib is loaded on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from layerlens.errors import PlotError, choose
from layerlens.results import (
    ActivationMaps,
    AttentionWeights,
    Attribution,
    Curve,
    FaithfulnessCurve,
    FeatureVisualization,
    GroupComparison,
    GroupEffects,
    LatentTraversal,
    LayerProfile,
    LayerTable,
    Leaderboard,
    Ledger,
    Matrix,
    Ranking,
    ReceptiveField,
    RecurrentStates,
    Relevance,
    TopInputs,
    TrainingHistory,
    UnitStatistics,
)

from .figures.activation_mosaic import activation_mosaic
from .figures.attention import attention
from .figures.channels import channels
from .figures.compare_methods import compare_methods
from .figures.curves import curves
from .figures.faithfulness_curve import faithfulness_curve
from .figures.feature_gallery import feature_gallery
from .figures.feature_visualization import feature_visualization
from .figures.gradient_flow import gradient_flow
from .figures.group_effects import group_effects
from .figures.heatmap import heatmap
from .figures.latent_traversal import latent_traversal
from .figures.layer_profile import layer_profile
from .figures.leaderboard import leaderboard
from .figures.matrix import matrix
from .figures.method_grid import method_grid
from .figures.model_map import model_map
from .figures.overlay_grid import overlay_grid
from .figures.ranking import sensitivity
from .figures.receptive_field import receptive_field
from .figures.recurrent_states import recurrent_states
from .figures.relevance_flow import relevance_flow
from .figures.thumbnail import thumbnail
from .figures.timeseries import timeseries
from .figures.tokens import tokens
from .figures.tokens_html import tokens_html
from .figures.top_inputs import top_inputs
from .figures.training import training
from .plot import Plot

__all__ = [
    "Plot",
    "activation_mosaic",
    "attention",
    "channels",
    "compare_methods",
    "curves",
    "faithfulness_curve",
    "feature_gallery",
    "feature_visualization",
    "gradient_flow",
    "group_effects",
    "heatmap",
    "latent_traversal",
    "layer_profile",
    "leaderboard",
    "matrix",
    "method_grid",
    "model_map",
    "overlay_grid",
    "plot",
    "receptive_field",
    "recurrent_states",
    "relevance_flow",
    "sensitivity",
    "thumbnail",
    "timeseries",
    "tokens",
    "tokens_html",
    "top_inputs",
    "training",
]


def _relevance_profile(relevance: Relevance, **options: Any) -> Plot:
    if relevance.profile is None:
        raise PlotError(
            "this relevance has no profile: no layers were asked for. Give layers= to the method, or draw kind='flow'."
        )
    return layer_profile(relevance.profile, **options)


def _group_layers(found: GroupComparison, contrast: int = 0, **options: Any) -> Plot:
    return layer_profile(found.profile(contrast), **options)


def _separation(found: GroupComparison, **options: Any) -> Plot:
    return layer_profile(found.separation, **options)


def _unit_profile(found: UnitStatistics, quantity: str = "zeros", **options: Any) -> Plot:
    return layer_profile(found.profile(quantity), **options)


_OF_ATTRIBUTION: Final[dict[str, Callable[..., Plot]]] = {
    "heatmap": heatmap,
    "grid": overlay_grid,
    "tokens": tokens,
    "timeseries": timeseries,
}
FIGURES: Final[dict[type[Any], dict[str, Callable[..., Plot]]]] = {
    Relevance: {**_OF_ATTRIBUTION, "flow": relevance_flow, "profile": _relevance_profile},
    Attribution: _OF_ATTRIBUTION,
    ActivationMaps: {"mosaic": activation_mosaic, "channels": channels},
    LayerProfile: {"profile": layer_profile},
    LayerTable: {"map": model_map},
    Ledger: {"flow": relevance_flow},
    TopInputs: {"inputs": top_inputs},
    RecurrentStates: {"states": recurrent_states},
    AttentionWeights: {"maps": attention},
    LatentTraversal: {"rows": latent_traversal},
    ReceptiveField: {"field": receptive_field},
    FeatureVisualization: {"images": feature_visualization},
    FaithfulnessCurve: {"curve": faithfulness_curve},
    Leaderboard: {"means": leaderboard},
    GroupComparison: {"places": group_effects, "layers": _group_layers, "separation": _separation},
    GroupEffects: {"effects": group_effects},
    Ranking: {"sensitivity": sensitivity},
    Matrix: {"matrix": matrix},
    Curve: {"curves": curves},
    UnitStatistics: {"profile": _unit_profile},
    TrainingHistory: {"training": training, "gradient_flow": gradient_flow},
}
"""The figures of each result by kind, the usual one first."""


def plot(result: Any, kind: str | None = None, **options: Any) -> Plot:
    """Draw any result that has a figure; `result.plot(kind, ...)` is the same.

    Args:
        result: an Attribution (kinds `"heatmap"`, `"grid"`, `"tokens"`, `"timeseries"`), Relevance (also `"flow"`,
            `"profile"`), ActivationMaps (`"mosaic"`, `"channels"`), LayerProfile (`"profile"`), LayerTable (`"map"`),
            Ledger (`"flow"`), TopInputs (`"inputs"`),
            RecurrentStates (`"states"`), ReceptiveField (`"field"`), FeatureVisualization
            (`"images"`), AttentionWeights (`"maps"`), LatentTraversal (`"rows"`), FaithfulnessCurve (`"curve"`),
            Leaderboard (`"means"`), GroupComparison or ErrorExplanation (`"places"`, `"layers"`, `"separation"`),
            GroupEffects (`"effects"`), Ranking (`"sensitivity"`), Matrix (`"matrix"`), Curve (`"curves"`) or
            TrainingHistory (`"training"`, `"gradient_flow"`),
            UnitStatistics (`"profile"`).
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
