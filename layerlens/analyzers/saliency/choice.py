"""Which method fits an input of a kind, for a number of passes."""

from __future__ import annotations

import dataclasses
import enum
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from layerlens.analyzers.common.features.input_features import features_of
from layerlens.analyzers.common.leaves.leaves import Leaf
from layerlens.analyzers.common.messages import all_finite
from layerlens.analyzers.common.scorer import Scorer, gradients
from layerlens.errors import LayerLensError, OptionError
from layerlens.model.layers import Selection
from layerlens.results import Attribution


class Kind(enum.Enum):
    """What a leaf is; the value is in words."""

    LAYER = "a layer"
    TEXT = "token ids"
    TABLE = "a table"
    SERIES = "a series"
    PICTURE = "a picture"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A method, and why it was chosen.

    Attributes:
        name: name of the method.
        options: its options.
        why: what the input and the network are, in words.
        page: the page of docs that has the measurements.
        tables: names of the inputs that are tables.
        spent: what the choice cost, in words.
        result: the result, where the method had to be run to find out.
        said: the warnings that its run gave.
        finite: whether the gradient is finite.
        convolutions: whether relevance was chosen for a network with convolutions and no attention.
    """

    name: str
    options: dict[str, Any]
    why: str
    page: str = "saliency"
    tables: tuple[str, ...] = ()
    spent: tuple[str, ...] = ()
    result: Attribution | None = None
    said: Sequence[warnings.WarningMessage] = ()
    finite: bool = True
    convolutions: bool = False

    def chosen(self, *more: str) -> str:
        """Say why it was chosen, and more, with the page."""
        return f"{', '.join([self.why, *more])}: docs/{self.page}.md"


LEAST = 3
"""The smallest budget: relevance takes about three passes, integrated gradients two and their steps."""

TEXT, TABLE, SAMPLED = 200, 1000, 300
"""Passes for texts, tables, and sampled Shapley values of other inputs, if no budget is given.

A text gets what integrated gradients cost with 50 steps and more; the models of tables are small.
"""

MASKS = 200
"""Masks of `rise` whose mean rank with relevance was measured on pictures."""

ENDS = 2
"""Passes for the scores of the input and of the baseline."""

MOST_STEPS = 200
"""Steps of integrated gradients that a budget is spent on."""

TOGETHER = 200
"""Features of inputs of several kinds for which Shapley values are sampled, if no budget is given."""

ORDERS = 4
"""Orders of the columns that sampled Shapley values of a table need at least."""


def fitting_choice(scorer: Scorer, where: Selection, kinds: set[Kind], budget: int | None) -> Choice:
    """The method for an input of some kinds, as far as they decide; a gradient may be tried."""
    leaves = list(scorer.leaves.values())
    if kinds == {Kind.TEXT}:
        return _for_text([leaf.value.shape[1] for leaf in leaves], budget)
    count = features_of(scorer).count
    passes = TABLE if budget is None else budget - ENDS
    if kinds == {Kind.TABLE} and ORDERS * count <= passes:
        why = f"a table of {count} column{'s' * (count > 1)}"
        return Choice("kernel_shap", {"samples": 2**count}, why) if 2**count <= passes else _sampled(count, passes, why)
    at_layer = {"where": where} if Kind.LAYER in kinds else {}
    why = " and ".join(sorted(kind.value for kind in kinds))
    together = count <= TOGETHER if budget is None else 2 * count <= passes
    passes = SAMPLED if budget is None else passes
    unreached, finite = _unreached(scorer)
    if unreached:
        if budget is not None and 2 * count > passes:
            with torch.no_grad():
                scores, output = scorer.scored(scorer.values())  # an input that the model does not take says so
                scorer.check(scorer.values(), scores, output)
            raise OptionError(
                f"budget={budget} is too small: no gradient reaches {unreached}, and sampled Shapley values of {count} "
                f"features take {2 * count + ENDS} passes at least. Give budget={2 * count + ENDS}, or name a method "
                "of other cost: lens.saliency.methods(for_input=x)."
            )
        found = _sampled(count, passes, f"no gradient reaches {unreached}")
        found = dataclasses.replace(found, options={**at_layer, **found.options})
    elif at_layer:
        found = Choice("integrated_gradients", {**at_layer, **steps_of(budget)}, why)
    elif len(kinds) > 1 and together:
        found = _sampled(count, passes, f"{why}, {count} features together")
    elif scorer.joint and len(scorer.rows) > 1:
        found = Choice("integrated_gradients", steps_of(budget), f"{why}, one value for all samples")
    else:
        many = f", {count} features together, too many for Shapley values" if len(kinds) > 1 else ""
        found = Choice("relevance", {}, why + many, finite=finite)
    return dataclasses.replace(found, spent=("1 gradient to choose it",))


def steps_of(budget: int | None) -> dict[str, int]:
    """Steps of integrated gradients: all that the budget pays at once, or the default, which is doubled if need be."""
    return {} if budget is None else dict.fromkeys(("steps", "max_steps"), min(MOST_STEPS, budget - ENDS))


def kind_of(leaf: Leaf) -> Kind:
    """What a leaf is."""
    if leaf.place is not None:
        return Kind.LAYER
    whole = any(use.output.shape[:-1].numel() == leaf.value.shape[:-1].numel() for use in leaf.uses)
    if leaf.value.ndim == 3 and leaf.uses and (whole or len({use.layer for use in leaf.uses}) == 1):
        return Kind.TEXT
    if leaf.uses or leaf.value.ndim < 3:  # also ids of several tables: categories
        return Kind.TABLE
    return Kind.SERIES if leaf.value.ndim == 3 else Kind.PICTURE


def _whole(scorer: Scorer) -> list[str]:
    """Inputs of whole numbers."""
    return [name for name, leaf in scorer.leaves.items() if not leaf.value.is_floating_point()]


def _unreached(scorer: Scorer) -> tuple[str, bool]:
    """What no gradient reaches, in words, empty where one reaches every input; and whether gradients are finite."""
    place = "input" if all(leaf.place is None for leaf in scorer.leaves.values()) else "layer"
    if whole := _whole(scorer):
        return f"whole numbers (input {', '.join(whole)})", True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            slopes = gradients(scorer, scorer.values())[1]
    except (LayerLensError, RuntimeError):  # what has another cause, the method raises again
        return f"{place} {', '.join(scorer.leaves)}", True
    flat = [name for name, slope in slopes.items() if not bool(slope.any())]
    return f"{place} {', '.join(flat)}" if flat else "", all(map(all_finite, slopes.values()))


def _for_text(lengths: list[int], budget: int | None) -> Choice:
    count = sum(lengths)
    passes = TEXT if budget is None else budget
    why, page = f"a text of {count} token(s)", "language-models"
    if count > passes:
        return Choice("centered_relevance", {}, why, page)
    if min(lengths) < 2:  # no other token to draw
        return Choice("leave_one_out", {"fill": "zero"}, why, page)
    return Choice("leave_one_out", {"draws": max(1, min(4, passes // count))}, why, page)


def _sampled(count: int, passes: int, why: str) -> Choice:
    """Shapley values from pairs of orders, as many as the passes allow: 1 to 13."""
    return Choice("shapley_sampling", {"permutations": 2 * max(1, min(13, passes // (2 * count)))}, why)
