"""The method that fits an input, by what the benchmarks found faithful on inputs of its kind."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import nn

from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.coalitions import BOTH
from layerlens.analyzers.common.features.references import Baselines
from layerlens.analyzers.common.messages import all_finite
from layerlens.analyzers.common.registry import METHODS, method
from layerlens.analyzers.common.scorer import scoring
from layerlens.analyzers.relevance.centered_relevance import centered_relevance
from layerlens.analyzers.relevance.relevance import relevance
from layerlens.errors import LayerLensError, OptionError, RelevanceError, check_count, warn
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .choice import LEAST, MASKS, Choice, Kind, fitting_choice, kind_of, steps_of
from .deeplift.deep_lift import lifted
from .mean_rank import mean_rank
from .path.gradient_shap import gradient_shap
from .path.integrated_gradients import integrated_gradients
from .perturbation.leave_one_out import leave_one_out
from .perturbation.rise import rise
from .perturbation.shapley import kernel_shap, shapley_sampling
from .saliency import with_cost

FEWEST_ROWS, APART, FAR = 10, 3, 10
"""A column is far from zero if its mean is three deviations away; of fewer than ten rows, if all are beyond ten."""

FROM_ZERO = ("deep_lift", "integrated_gradients", "kernel_shap", "shapley_sampling")
"""Methods whose values are differences from zeros where no baseline is given."""

MEASURED = {"epsilon_plus": ["convolutions"], "cp": ["attention"]}
"""The rulebooks of relevance that were measured, and what the networks have for which it is the best method."""

Found = TypeVar("Found")

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
    - Pictures: `relevance` for networks with convolutions or attention and no recurrent layers, else
      `integrated_gradients`.
    - Series, waveforms: `deep_lift` for such networks, if its values add up; else `integrated_gradients`.
    - Inputs of several kinds, such as an image and a text: `shapley_sampling` over cells, columns and tokens; beyond
      200 of them as for pictures.
    - A layer: `integrated_gradients`.
    - Where no gradient reaches the input (whole numbers, hard decisions), found by one pass: `shapley_sampling`.

    - A budget of 203 passes for pictures and convolutions: the mean rank of `relevance` and `rise`, see `mean_rank`.

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
    for one in choice.said:
        warn(str(one.message), one.category)
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
        kinds = {name: kind_of(leaf) for name, leaf in scorer.leaves.items()}
        choice = fitting_choice(scorer, where, set(kinds.values()), budget)
    choice = dataclasses.replace(choice, tables=tuple(name for name, kind in kinds.items() if kind is Kind.TABLE))
    name, options = choice.name, dict(choice.options)
    if baseline is not None and name in ("relevance", "centered_relevance"):
        name, options = "integrated_gradients", steps_of(budget)
    if baselines is not None:
        if name not in ("kernel_shap", "shapley_sampling"):
            name, options = "gradient_shap", {key: value for key, value in options.items() if key == "where"}
        options["baselines"] = baselines
    if name == "relevance":
        choice = _measured(choice, lambda: relevance(model, inputs, target=target, forward=forward))
        if choice.result is not None and choice.finite and set(kinds.values()) <= {Kind.SERIES, Kind.TABLE}:
            choice = _adding_up(choice, lambda: lifted(model, inputs, target=target, forward=forward))
        name, options = choice.name, steps_of(budget) if choice.name == "integrated_gradients" else options
        if set(kinds.values()) == {Kind.PICTURE} and choice.convolutions:
            choice = dataclasses.replace(choice, page="faithfulness")
            if choice.result is not None and budget is not None and budget >= MASKS + LEAST:
                masks = rise(model, inputs, target=target, samples=MASKS, forward=forward)
                maps = [with_cost(choice.result, METHODS["relevance"]), with_cost(masks, METHODS["rise"])]
                choice = dataclasses.replace(choice, result=mean_rank(*maps))
    if choice.result is None and baseline is not None:
        options["fill" if name == "leave_one_out" else "baseline"] = baseline
    return dataclasses.replace(choice, name=name, options=options)


def _measured(choice: Choice, run: Callable[[], Attribution]) -> Choice:
    """Choose relevance if it was measured as the best for what the network has, else integrated gradients."""
    tried = (*choice.spent, "about 3 gradients to try relevance")
    other = dataclasses.replace(choice, name="integrated_gradients", spent=tried)
    try:
        found, said = _trial(run)
    except RelevanceError:
        without = f"{choice.why}, and without a rule for convolutions or attention in the network"
        return dataclasses.replace(other, why=without)
    book = found.settings["rules"]
    if not choice.finite and all_finite(found.tensor):
        why = f"{choice.why}, and a gradient that is not finite"
        return dataclasses.replace(choice, why=why, result=found, said=said)
    if book["name"] not in MEASURED:
        return dataclasses.replace(other, why=f"{choice.why}, and no convolutions or attention in the network")
    why = f"{choice.why}, and a network with {book['chosen'].removeprefix('it has ')}"
    if book["has"] != MEASURED[book["name"]]:
        return dataclasses.replace(other, why=why)
    return dataclasses.replace(choice, why=why, result=found, said=said, convolutions=book["name"] == "epsilon_plus")


def _adding_up(choice: Choice, run: Callable[[], tuple[Attribution, str]]) -> Choice:
    """Choose DeepLIFT if its values add up to the change of the score, else integrated gradients."""
    why, spent = choice.why, (*choice.spent, "about 3 gradients to try relevance")
    try:
        (found, missed), said = _trial(run)
        failed = "in which deep_lift does not add up" if missed else ""
    except (LayerLensError, RuntimeError):  # what has another cause, the other method raises again
        failed = "which deep_lift does not take"
    if failed:
        why, spent = f"{why}, {failed}", (*spent, "1 gradient and 1 forward pass to try deep_lift")
        return dataclasses.replace(choice, name="integrated_gradients", why=why, spent=spent, result=None)
    return dataclasses.replace(choice, name="deep_lift", why=why, spent=spent, result=found, said=said)


def _trial(run: Callable[[], Found]) -> tuple[Found, list[warnings.WarningMessage]]:
    """Run a method that may not be taken; return also the warnings that are to be given if it is."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return run(), caught


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
