"""The methods that are compared: one number per sentence, from ablations, from the model's inside, or from both."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.linear_model import Lasso, RidgeCV
from sklearn.preprocessing import StandardScaler

from layerlens.analyzers.generation.source_regression import chosen, fit

from .answer_data import Masks, Measured
from .answer_pack import case_of
from .answer_truth import Case, without_best

SWEEP = 3
"""Passes of a relevance map: one forward, and a backward that costs two."""

BUDGETS = (6, 8, 12, 16, 32)
LASSO = (8, 12, 16, 32, 64)
PRIOR = "relevance, cp"
Values = dict[str, tuple[np.ndarray, float]]
"""By method: one number per sentence, and the passes they cost."""


def lasso(kept: Masks, scores: np.ndarray, tokens: int, alpha: float = 0.01) -> np.ndarray:
    """ContextCite's recipe: a lasso on standardized masks, of the score per token of the answer."""
    scaler = StandardScaler()
    x = scaler.fit_transform(kept.astype(np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Lasso(alpha=alpha).fit(x, scores / tokens)
    return found.coef_ / scaler.scale_ * tokens


def ridge(kept: Masks, scores: np.ndarray) -> np.ndarray:
    """A ridge regression whose penalty is found by leaving ablations out."""
    return RidgeCV(np.logspace(-2, 3, 16)).fit(kept.astype(np.float64) - 0.5, scores).coef_


def ours(case: Case, passes: int, prior: str | None = PRIOR) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors of relevance and a few ablations; `prior=None` is the regression alone."""
    expected = None if prior is None else case.maps[prior][None]
    more = passes - (1 if prior is None else SWEEP)
    kept = np.concatenate([case.whole, chosen(case.random, more, expected)])
    values, errors, _ = fit(kept, case.at(kept)[:, None], expected)
    return values[0], errors[0]


def methods(case: Case) -> Values:
    """All methods on one context."""
    scores = case.at(case.random)
    found: Values = {}
    for passes in BUDGETS:
        found[f"relevance + ablations, {passes}"] = ours(case, passes)[0], passes
    for passes in LASSO:
        found[f"ablations alone, {passes}"] = ours(case, passes, None)[0], passes
    for count in LASSO:
        found[f"ContextCite, {count}"] = lasso(case.random[:count], scores[:count], case.length), count
    for count in LASSO:
        found[f"ridge, {count}"] = ridge(case.random[:count], scores[:count]), count
    alone = ~np.eye(case.sources, dtype=bool)
    found["leave one out"] = case.at(case.whole) - case.at(alone), case.sources + 1
    passes = {"gradient x input": 3, "attention": 2, "integrated gradients": 12}
    for name, values in case.maps.items():
        found[name] = values, passes.get(name, SWEEP)
    found["random"] = np.random.default_rng([case.number, 1]).normal(size=case.sources), 0
    return found


RANKED = (
    "relevance + ablations, 12",
    "ContextCite, 16",
    "ContextCite, 64",
    "leave one out",
    PRIOR,
    "random",
)
"""Methods whose strongest sentences are taken out."""


def best_left_out(one: Measured) -> Masks:
    """The ablations that take out the strongest sentences of the methods in `RANKED`."""
    found = methods(case_of(one))
    return np.concatenate([without_best(found[name][0]) for name in RANKED])
