"""The rows of the benchmark by kind of input: every method of the registry, rulebooks, options, and controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import layerlens.analyzers.saliency  # noqa: F401  (fills the registry)
from layerlens.analyzers.common.registry import METHODS
from layerlens.analyzers.relevance import RULEBOOKS

from .kinds_task import BACKGROUND, MEAN, Rows

COSTLY: dict[str, dict[str, Any]] = {
    "guided_ig": {"steps": 10},
    "lime": {"samples": 150},
    "permutation": {"draws": 3},
    "rise": {"samples": 150},
    "sobol": {"draws": 2},
}
"""Options of methods that take too long as they are."""

ORDERS = {"shapley_sampling": {"permutations": 4}, "kernel_shap": {"samples": 256}}
"""Options of those that take too long on series and pictures, which have 64 features."""

BOOKS: Rows = {f"relevance, {book}": ("relevance", {"rules": book}) for book in RULEBOOKS}


def every(given: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Every method of the registry, with options for some: a row is named by both."""
    rows = {}
    for name in sorted(METHODS):
        options = given.get(name, {})
        rows[", ".join([name, *(f"{value} {option}" for option, value in options.items())])] = (name, options)
    return rows


_SMOOTH: Rows = {
    "smooth_grad, absolute": ("smooth_grad", {"magnitude": True}),
    "smooth_grad of relevance, 8 samples": ("smooth_grad", {"of": "relevance", "samples": 8}),
}
SERIES: Rows = {
    **every(COSTLY | ORDERS),
    **BOOKS,
    **_SMOOTH,
    "shapley_sampling, 2 permutations": ("shapley_sampling", {"permutations": 2}),
    "shapley_sampling, 6 permutations of 32 cells": ("shapley_sampling", {"permutations": 6, "features": 32}),
    "shapley_sampling, 12 permutations of 16 cells": ("shapley_sampling", {"permutations": 12, "features": 16}),
    "shapley_sampling, 4 permutations, mean": ("shapley_sampling", {"permutations": 4, "baseline": "mean"}),
    "integrated_gradients, mean": ("integrated_gradients", {"baseline": "mean"}),
    "integrated_gradients, blur": ("integrated_gradients", {"baseline": "blur"}),
    "gradient_shap, rows": ("gradient_shap", {"baselines": BACKGROUND}),
    "deep_shap, rows": ("deep_shap", {"baselines": BACKGROUND}),
    "feature_ablation, mean": ("feature_ablation", {"baseline": "mean"}),
    "occlusion, mean": ("occlusion", {"baseline": "mean"}),
}
TABLES: Rows = {
    **every(COSTLY),
    **BOOKS,
    **_SMOOTH,
    "kernel_shap, 256 samples": ("kernel_shap", {"samples": 256}),
    "shapley_sampling, 4 permutations": ("shapley_sampling", {"permutations": 4}),
    "shapley_sampling, 12 permutations": ("shapley_sampling", {"permutations": 12}),
    **{
        f"{name}, rows{more}": (name, {"baselines": BACKGROUND, **options})
        for name, more, options in (
            ("auto", "", {}),
            ("kernel_shap", "", {}),
            ("kernel_shap", ", 256 samples", {"samples": 256}),
            ("shapley_sampling", "", {}),
            ("shapley_sampling", ", 4 permutations", {"permutations": 4}),
            ("gradient_shap", "", {}),
            ("deep_shap", "", {}),
        )
    },
    **{
        f"{name}, mean row": (name, {"baseline": MEAN})
        for name in ("auto", "integrated_gradients", "deep_lift", "feature_ablation", "shapley_sampling")
    },
}
CONTROLS = ("control: random", "control: center", "control: amplitude")
"""Maps that know nothing of the model."""


def control(name: str, x: torch.Tensor) -> torch.Tensor:
    """The map of a control, shaped like x; the middle is that of every axis but the first and one of fewer values.

    The amplitude of a series is the distance from its mean over time.
    """
    if name.endswith("random"):
        return torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    long = max(range(1, x.ndim), key=lambda axis: x.shape[axis])
    if name.endswith("amplitude"):
        return (x - x.mean(dim=long, keepdim=True)).abs() if x.ndim > 2 else x.abs()
    shape = [1] * x.ndim
    shape[long] = -1
    return (-0.5 * torch.linspace(-2, 2, x.shape[long]) ** 2).exp().reshape(shape).expand(x.shape)


def given_to(options: Mapping[str, Any]) -> str:
    """What a row is given of the background: `"rows"`, `"mean row"`, or nothing."""
    texts = [value for value in options.values() if isinstance(value, str)]
    return "rows" if BACKGROUND in texts else "mean row" if MEAN in texts else ""


def options_for(options: Mapping[str, Any], background: torch.Tensor | None) -> dict[str, Any] | None:
    """Put the background of a task into options; None if it has none."""
    if given_to(options) and background is None:
        return None
    known = {} if background is None else {BACKGROUND: background, MEAN: background.mean(dim=0)}
    return {name: known.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
