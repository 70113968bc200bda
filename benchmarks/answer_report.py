"""The page on sources of answers: tables with intervals, from what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .answer_methods import PRIOR, RANKED, methods, ours
from .answer_truth import TOP, Case

DRAWS = 10000
BASIS = "relevance + ablations, 12"
GOAL = "ContextCite, 64"
SWEPT = (
    "centered relevance, attn",
    "centered relevance, cp",
    "relevance, attn",
    "relevance, cp",
    "gradient x input",
    "leave one out",
)
"""What `method="auto"` of `lens.saliency` takes for a text of more than 200 tokens, what costs the same, and more."""


def interval(values: np.ndarray) -> str:
    """The mean over contexts and its 95 % interval, by bootstrap."""
    values = values[np.isfinite(values)]
    if not len(values):
        return "-"
    draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    ruler = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ruler, *rows])


def table(cases: Sequence[Case], scores: dict[str, np.ndarray], passes: dict[str, str]) -> str:
    """Every method: passes, the score over all contexts, given and own answers, and the difference to ours."""
    given = np.array([case.forced for case in cases])
    rows = []
    for name, values in scores.items():
        less = "-" if name == BASIS else interval(scores[BASIS] - values)
        count = str(np.isfinite(values).sum())
        rows.append(
            [name, passes[name], count, interval(values), interval(values[given]), interval(values[~given]), less]
        )
    return lines(("method", "passes", "contexts", "all", "given answers", "own answers", f"{BASIS} minus it"), rows)


def by_kind(cases: Sequence[Case], scores: dict[str, np.ndarray]) -> str:
    """The main methods by kind of context."""
    shown = [BASIS, GOAL, "ContextCite, 16", PRIOR, "leave one out"]
    rows = []
    for kind in dict.fromkeys(case.kind for case in cases):
        own = np.array([case.kind == kind for case in cases])
        rows.append([kind, str(own.sum()), *(f"{scores[name][own].mean():.2f}" for name in shown)])
        rows[-1].append(interval(scores[BASIS][own] - scores[GOAL][own]))
    return lines(("kind", "contexts", *shown, "first minus second"), rows)


def one_sweep(scores: dict[str, np.ndarray], passes: dict[str, str]) -> str:
    """Maps of one sweep and leaving out, on the contexts that have all of them."""
    shown = {name: scores[name] for name in SWEPT if name in scores}
    known = np.isfinite(np.array(list(shown.values()))).all(axis=0)
    rows = []
    for name, values in shown.items():
        less = "-" if name == SWEPT[0] else interval((values - shown[SWEPT[0]])[known])
        rows.append([name, passes[name], interval(values[known]), less])
    return lines((f"method ({known.sum()} contexts)", "passes", "score", f"minus {SWEPT[0]}"), rows)


def drops(cases: Sequence[Case], found: Sequence[dict[str, np.ndarray]]) -> str:
    """How much of log p the strongest sentences carry, in the contexts where all of it was measured."""
    fallen = np.array([[case.drops(own[name]) for name in RANKED] for case, own in zip(cases, found, strict=True)])
    fallen = fallen[np.isfinite(fallen).all(axis=(1, 2))]  # (context, method, count)
    rows = [[name, *map(interval, fallen[:, row].T)] for row, name in enumerate(RANKED)]
    return lines((f"method ({len(fallen)} contexts)", *(f"without {count}" for count in TOP)), rows)


def truth(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares over all random ablations: values, their standard errors, residuals."""
    masks = np.unique(np.concatenate([case.random, case.held_out]), axis=0)
    x = np.column_stack([np.ones(len(masks)), masks - 0.5])
    scores = case.at(masks)
    inverse = np.linalg.pinv(x.T @ x)
    found = inverse @ x.T @ scores
    left = scores - x @ found
    free = max(1, len(masks) - x.shape[1])
    return found[1:], np.sqrt(np.diag(inverse)[1:] * (left**2).sum() / free), left * np.sqrt(len(masks) / free)


def covered(cases: Sequence[Case], passes: int, planted: bool, prior: str | None = PRIOR) -> tuple[float, float]:
    """How often an interval of 1 and of 1.96 standard errors holds the truth.

    Args:
        cases: contexts.
        passes: budget.
        planted: whether the truth is a linear model with the effects and the residuals of the context, so that it is
            known; else it is the regression over all random ablations, with its own standard error.
        prior: the map that is the prior; None for none.
    """
    apart = []
    for case in cases:
        values, errors, left = truth(case)
        if planted:
            random = np.random.default_rng([case.number, 2])
            scores = case.masks @ values + random.choice(left, len(case.masks))
            made = Case(*(getattr(case, name) for name in Case.HEAD), case.masks, scores, case.maps)
            errors = np.zeros(case.sources)
        found, own = ours(made if planted else case, passes, prior)
        apart.append((found - values) / np.hypot(own, errors))
    apart = np.abs(np.concatenate(apart))
    return float((apart < 1).mean()), float((apart < 1.96).mean())


def coverage(cases: Sequence[Case]) -> str:
    """How honest the standard errors are."""
    rows = []
    for passes in (6, 8, 12, 16, 32):
        found = [share for planted in (True, False) for share in covered(cases, passes, planted)]
        rows.append([str(passes), *(f"{100 * share:.0f} %" for share in found)])
    return lines(("passes", "planted, 1 s.e.", "planted, 1.96 s.e.", "measured, 1 s.e.", "measured, 1.96 s.e."), rows)


def scored(cases: Sequence[Case], found: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The score by method, NaN where a context lacks it."""
    names = dict.fromkeys(name for own in found for name in own)
    return {
        name: np.array(
            [case.agreement(own[name]) if name in own else np.nan for case, own in zip(cases, found, strict=True)]
        )
        for name in names
    }


def verdict(difference: np.ndarray) -> str:
    """What the paired interval says about the goal."""
    shown = interval(difference)
    low, high = (float(part) for part in shown.split("[")[1].rstrip("]").split(","))
    if low >= 0:
        return f"The goal holds: the difference is {shown}."
    if high < 0:
        return f"The goal does not hold: the difference is {shown}."
    return f"The goal is met within the interval, which allows a loss of {-low:.2f}: the difference is {shown}."


def report(cases: Sequence[Case]) -> str:
    """The page."""
    pairs = [methods(case) for case in cases]
    found = [{name: values for name, (values, _) in own.items()} for own in pairs]
    costs: dict[str, list[float]] = {}
    for own in pairs:
        for name, (_, cost) in own.items():
            costs.setdefault(name, []).append(cost)
    passes = {name: f"{np.mean(own):.0f}" for name, own in costs.items()}
    scores = scored(cases, found)
    free = [case for case in cases if np.isfinite(case.wrong)]
    text = PAGE.format(
        contexts=len(cases),
        forced=sum(case.forced for case in cases),
        free=sum(not case.forced for case in cases),
        judged=len(free),
        wrong=sum(case.wrong > 0 for case in free),
        fewest=min(case.sources for case in cases),
        most=max(case.sources for case in cases),
        table=table(cases, scores, passes),
        verdict=verdict(scores[BASIS] - scores[GOAL]),
        kinds=by_kind(cases, scores),
        swept=one_sweep(scores, passes),
        drops=drops(cases, found),
        coverage=coverage(cases),
    )
    return text.rstrip()


PAGE = """# Which sentence of the context made this answer

Made by `python -m benchmarks.answers report` from `benchmarks/answers.npz`, which `measure` and `pack` make.

SmolLM2-135M-Instruct, {contexts} contexts of {fewest} to {most} sentences, rows or items in its chat template:
invented facts with decoys from ten templates, and documentation of modules and packages to be summarized. The true
answer was given {forced} times, {free} times the model answered itself, greedily: {wrong} of {judged} answers that can
be judged are wrong. The constants of the estimator were set before anything was measured and are not fitted to these
contexts. A map that some contexts lack (see the column) was not made for them yet; `maps` makes it.

The truth: 32 held-out random ablations, each of which keeps a sentence with probability 1/2. The score is the linear
datamodelling score of ContextCite (Cohen-Wang et al. 2024), the rank correlation between the logit of the answer's
probability and the sum of the values of the sentences kept. It is the same for the log-probability, which has the same
order. Intervals are 95 % bootstrap intervals over contexts, paired for differences. A forward pass costs 1, a backward
pass 2. Methods by ablation fit the logit of the answer's probability. "relevance + ablations" is the default of
`lens.explain_answer`: 3 passes for the relevance and the score of the whole prompt, the others for ablations.
"ablations alone" is the same regression without relevance. ContextCite's lasso is that of its public code (alpha 0.01
on standardized masks, score per token). Ablations are run with matrices in bfloat16, which moves a score by .04 to .13.

{table}

{verdict}

## By kind of context

{kinds}

## One sweep

The first is what `lens.saliency` takes by default for texts of more than 200 tokens. On the contexts that have all of
these maps:

{swept}

## Without the strongest sentences

How far log p of the answer falls, in nats, without the 1, 3 or 5 strongest sentences:

{drops}

## Standard errors

How often the true value lies within 1 standard error (68 % if they are right) and within 1.96 (95 %). Planted: a linear
model whose effects and residuals are those of a regression over all random ablations of a context, so that the truth is
known. Measured: that regression itself, with its own standard error added.

{coverage}
"""
