"""The method that fits an input, by what the benchmarks found faithful on inputs of its kind."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import enum
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.coalitions import BOTH
from layerlens.analyzers.common.features.input_features import features_of
from layerlens.analyzers.common.features.references import Baselines
from layerlens.analyzers.common.leaves.leaves import Leaf
from layerlens.analyzers.common.messages import all_finite
from layerlens.analyzers.common.registry import METHODS, method
from layerlens.analyzers.common.scorer import Scorer, gradients, scoring
from layerlens.analyzers.relevance.centered_relevance import centered_relevance
from layerlens.analyzers.relevance.relevance import relevance
from layerlens.errors import LayerLensError, OptionError, RelevanceError, check_count, warn
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .path.gradient_shap import gradient_shap
from .path.integrated_gradients import integrated_gradients
from .perturbation.leave_one_out import leave_one_out
from .perturbation.shapley import kernel_shap, shapley_sampling
from .saliency import with_cost


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
        finite: whether the gradient is finite.
    """

    name: str
    options: dict[str, Any]
    why: str
    page: str = "saliency"
    tables: tuple[str, ...] = ()
    spent: tuple[str, ...] = ()
    result: Attribution | None = None
    finite: bool = True

    def chosen(self, *more: str) -> str:
        """Say why it was chosen, and more, with the page."""
        return f"{', '.join([self.why, *more])}: docs/{self.page}.md"


LEAST = 3
"""The smallest budget: relevance takes about three passes, integrated gradients two and their steps."""

TEXT, TABLE, SAMPLED = 200, 1000, 300
"""Passes for texts, tables, and sampled Shapley values of other inputs, if no budget is given.

A text gets what integrated gradients cost with 50 steps and more; the models of tables are small.
"""

ENDS = 2
"""Passes for the scores of the input and of the baseline."""

MOST_STEPS = 200
"""Steps of integrated gradients that a budget is spent on."""

TOGETHER = 200
"""Features of inputs of several kinds for which Shapley values are sampled, if no budget is given."""

ORDERS = 4
"""Orders of the columns that sampled Shapley values of a table need at least."""

FEWEST_ROWS, APART, FAR = 10, 3, 10
"""A column is far from zero if its mean is three deviations away; of fewer than ten rows, if all are beyond ten."""

FROM_ZERO = ("integrated_gradients", "kernel_shap", "shapley_sampling")
"""Methods whose values are differences from zeros where no baseline is given."""

MEASURED = {"epsilon_plus": ["convolutions"], "cp": ["attention"]}
"""The rulebooks of relevance that were measured, and what the networks have for which it is the best method."""

_ROWS: contextvars.ContextVar[Mapping[str, torch.Tensor] | None] = contextvars.ContextVar("rows", default=None)


@contextlib.contextmanager
def judged_by(rows: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Judge by these rows of a whole data set, instead of by a batch, whether its columns are far from zero.

    Args:
        rows: name of an input -> rows of it, (rows, columns).

    Yields:
        Nothing.
    """
    token = _ROWS.set(rows)
    try:
        yield
    finally:
        _ROWS.reset(token)


@method(
    name="auto",
    family="automatic",
    passes="as the method it chooses",
    source="benchmarks/kinds.md, benchmarks/tokens.md, benchmarks/faithfulness.md",
)
def auto(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    baseline: Baseline | None = None,
    baselines: Baselines = None,
    budget: int | None = None,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Attribute by the method that is most faithful on inputs of this kind; the result says which, and why.

    - Token ids: `leave_one_out` with 4 draws up to 50 tokens, fewer up to 200; `centered_relevance` beyond.
    - Tables, of up to 250 columns: Shapley values, exact up to 9 columns (`kernel_shap`), else `shapley_sampling`.
    - Pictures, series, waveforms: `relevance` for networks with convolutions or attention and no recurrent layers,
      else `integrated_gradients`.
    - Inputs of several kinds, such as an image and a text: `shapley_sampling` over cells, columns and tokens; beyond
      200 of them as for pictures.
    - A layer: `integrated_gradients`.
    - Where no gradient reaches the input (whole numbers, hard decisions), found by one pass: `shapley_sampling`.

    docs/saliency.md has the measurements.

    Args:
        baseline: what stands for the absence of a signal, such as the mean row of your data, see
            `integrated_gradients`; None for the default of the method. Relevance has none: with a baseline,
            `integrated_gradients` takes its place.
        baselines: background data, such as rows of your data: Shapley values are of the mean score over them, as in
            `kernel_shap`; `gradient_shap` takes the place of other methods.
        budget: passes that the method may take for a sample, 3 or more. A gradient counts as one; choosing the method,
            and a few passes that prepare it, are not counted. None for those with which the methods were measured, as
            above.

    Returns:
        The `Attribution` of the chosen method; `settings["chosen"]` says why it was chosen.

    Raises:
        InputError: when the input holds nothing to attribute to, or whole numbers that the model does not take.
        OptionError: when the baseline does not fit the input, or the budget is below what the method for it needs.
        LayerNotFound: when `where` matches no layer.
        SelectionError: when `where` matches several layers or calls.
        TargetError: when the target does not fit the output.

    Warns:
        UserWarning: when the values of a table are differences from zeros that are far from its columns.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> auto(net, torch.tensor([[3, 1, 4]]), target=0).method
        'leave_one_out'
        >>> found = auto(nn.Linear(3, 1), torch.ones(1, 3))
        >>> found.method, found.settings["chosen"]
        ('kernel_shap', 'a table of 3 columns, baseline zero: docs/saliency.md')
        >>> auto(nn.Linear(3, 1), torch.ones(1, 3), budget=5).method
        'integrated_gradients'
    """
    inputs = as_inputs(x)
    choice = choose_method(
        model, inputs, target=target, where=where, baseline=baseline, baselines=baselines, budget=budget,
        forward=forward,
    )  # fmt: skip
    result = choice.result
    if result is None:
        result = CHOSEN[choice.name](model, inputs, target=target, forward=forward, **choice.options)
    result = with_cost(result, METHODS[choice.name])
    if baseline is None and baselines is None and choice.name in FROM_ZERO:
        rows, floating = _ROWS.get() or {}, inputs.floating()
        _warn_of_zero({name: rows.get(name, floating[name]) for name in choice.tables if name in floating}, inputs)
    said = [f"{one} {result.settings[one]}" for one in ("baseline", "baselines") if one in result.settings]
    at_most = [f"at most {budget} passes"] if budget is not None else []
    settings = {**result.settings, "chosen": choice.chosen(*said, *at_most)}
    return dataclasses.replace(result, cost=", ".join([result.cost, *choice.spent]), settings=settings)


def _warn_of_zero(tables: Mapping[str, torch.Tensor], inputs: Inputs) -> None:
    """Warn of columns whose values are all far from zero, as those of a table that was not scaled."""
    far = []
    for name, tensor in tables.items():
        if tensor.ndim != 2:
            continue
        spread, mean = tensor.double().std(dim=0, unbiased=False), tensor.double().mean(dim=0)
        few = len(tensor) < FEWEST_ROWS
        away = tensor.abs().amin(dim=0) > FAR if few else (mean.abs() > APART * spread) & (spread > 0)
        names = inputs.features.get(name) or [f"column {column}" for column in range(tensor.shape[1])]
        far += [f"{names[column]} ({mean[column]:.3g})" for column in away.nonzero().flatten().tolist()]
    if far:
        more = f" and {len(far) - 3} more" if len(far) > 3 else ""
        warn(
            "auto: the values are differences from a row of zeros, which is far from the mean of "
            f"{', '.join(far[:3])}{more}. Give rows of your data, baselines=data[:100], or a typical one, "
            "baseline=data.mean(0); or scale the columns as in training, Lens(model, transform=...)."
        )


def choose_method(
    model: nn.Module,
    inputs: Inputs,
    *,
    target: Spec = None,
    where: Selection = None,
    baseline: Baseline | None = None,
    baselines: Baselines = None,
    budget: int | None = None,
    forward: Forward | None = None,
) -> Choice:
    """Return the method for an input, why it was chosen, and its result where it had to be run to find out.

    Raises:
        InputError: when there is nothing to attribute to, or the model does not take the whole numbers of its input.
        TargetError: when the target does not fit the output.
        OptionError: when a baseline and baselines are given, or the budget is too small.
    """
    if budget is not None:
        check_count("budget", budget, least=LEAST)
        if baselines is not None:
            raise OptionError(
                f"budget={budget} counts passes against one baseline: with baselines= name a method and its own number "
                "of samples, such as method='kernel_shap', samples=100."
            )
    if baseline is not None and baselines is not None:
        raise OptionError(BOTH)
    with scoring(model, inputs, target, where=where, forward=forward, whole="always") as scorer:
        kinds = {name: _kind(leaf) for name, leaf in scorer.leaves.items()}
        choice = _choice(scorer, where, set(kinds.values()), budget)
    choice = dataclasses.replace(choice, tables=tuple(name for name, kind in kinds.items() if kind is Kind.TABLE))
    name, options = choice.name, dict(choice.options)
    if baseline is not None and name in ("relevance", "centered_relevance"):
        name, options = "integrated_gradients", _steps(budget)
    if baselines is not None:
        if name not in ("kernel_shap", "shapley_sampling"):
            name, options = "gradient_shap", {key: value for key, value in options.items() if key == "where"}
        options["baselines"] = baselines
    if name == "relevance":
        choice = _measured(
            choice, set(kinds.values()), lambda: relevance(model, inputs, target=target, forward=forward)
        )
        name, options = choice.name, _steps(budget) if choice.name == "integrated_gradients" else options
    if choice.result is None and baseline is not None:
        options["fill" if name == "leave_one_out" else "baseline"] = baseline
    return dataclasses.replace(choice, name=name, options=options)


def _measured(choice: Choice, kinds: set[Kind], run: Callable[[], Attribution]) -> Choice:
    """Choose relevance if it was measured as the best for what the network has, else integrated gradients."""
    tried = (*choice.spent, "about 3 gradients to try relevance")
    other = dataclasses.replace(choice, name="integrated_gradients", spent=tried)
    try:
        found = run()
    except RelevanceError:
        without = f"{choice.why}, and without a rule for convolutions or attention in the network"
        return dataclasses.replace(other, why=without)
    book = found.settings["rules"]
    if not choice.finite and all_finite(found.tensor):
        return dataclasses.replace(choice, why=f"{choice.why}, and a gradient that is not finite", result=found)
    if book["name"] not in MEASURED:
        return dataclasses.replace(other, why=f"{choice.why}, and no convolutions or attention in the network")
    why = f"{choice.why}, and a network with {book['chosen'].removeprefix('it has ')}"
    if book["has"] != MEASURED[book["name"]]:
        return dataclasses.replace(other, why=why)
    page = "faithfulness" if kinds == {Kind.PICTURE} and book["name"] == "epsilon_plus" else choice.page
    return dataclasses.replace(choice, why=why, page=page, result=found)


def _choice(scorer: Scorer, where: Selection, kinds: set[Kind], budget: int | None) -> Choice:
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
            raise OptionError(
                f"budget={budget} is too small: no gradient reaches {unreached}, and sampled Shapley values of {count} "
                f"features take {2 * count + ENDS} passes at least. Give budget={2 * count + ENDS}, or name a method "
                "of other cost: lens.saliency.methods(for_input=x)."
            )
        found = _sampled(count, passes, f"no gradient reaches {unreached}")
        found = dataclasses.replace(found, options={**at_layer, **found.options})
    elif at_layer:
        found = Choice("integrated_gradients", {**at_layer, **_steps(budget)}, why)
    elif len(kinds) > 1 and together:
        found = _sampled(count, passes, f"{why}, {count} features together")
    elif scorer.joint and len(scorer.rows) > 1:
        found = Choice("integrated_gradients", _steps(budget), f"{why}, one value for all samples")
    else:
        many = f", {count} features together, too many for Shapley values" if len(kinds) > 1 else ""
        found = Choice("relevance", {}, why + many, finite=finite)
    return dataclasses.replace(found, spent=("1 gradient to choose it",))


def _steps(budget: int | None) -> dict[str, int]:
    """Steps of integrated gradients: all that the budget pays at once, or the default, which is doubled if need be."""
    return {} if budget is None else dict.fromkeys(("steps", "max_steps"), min(MOST_STEPS, budget - ENDS))


def _kind(leaf: Leaf) -> Kind:
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


CHOSEN: dict[str, Callable[..., Attribution]] = {
    function.__name__: function
    for function in (
        centered_relevance,
        gradient_shap,
        integrated_gradients,
        kernel_shap,
        leave_one_out,
        shapley_sampling,
    )
}
