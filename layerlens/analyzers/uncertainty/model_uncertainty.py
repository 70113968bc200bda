"""How an attribution varies over plausible models: with dropout on, from a posterior of weights, or an ensemble."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from layerlens.analyzers.common.messages import each_once
from layerlens.analyzers.common.registry import method_named
from layerlens.analyzers.common.scorer import scoring
from layerlens.analyzers.saliency import saliency
from layerlens.analyzers.saliency.auto import choose_method
from layerlens.errors import InputError, OptionError, TargetError, check_count, check_seed, choose
from layerlens.inputs.batches import Samples
from layerlens.inputs.inputs import Forward, Input, Inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.model.trees import describe
from layerlens.progress import track
from layerlens.results import Attribution, EnsembleAttribution
from layerlens.results.intervals import joined
from layerlens.signatures import public
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Spec

from .dropout import WithDropout
from .last_layer import last_layer_weights, with_weights

Models: TypeAlias = "Literal['dropout', 'laplace'] | Sequence[nn.Module]"
Drawn: TypeAlias = "tuple[nn.Module, Forward | None]"
"""A plausible model, and what to call instead of it."""


@public
def model_uncertainty(
    model: nn.Module,
    x: Input,
    *,
    models: Models = "dropout",
    target: Spec = None,
    method: str = "auto",
    where: Selection = None,
    draws: int | None = None,
    options: Mapping[str, Any] | None = None,
    training: Samples | None = None,
    posterior: Mapping[str, Any] | None = None,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> EnsembleAttribution:
    """Attribute by each of several plausible models, and measure how far they agree.

    - `"dropout"`: the model with its dropout on (Gal & Ghahramani 2016). A draw drops the same units in every pass and
      for every sample, so that a method of many passes explains one model; everything else stays in eval mode.
    - `"laplace"`: draws from a Laplace approximation of the posterior of the weights of the last linear layer, by
      laplace-torch (Daxberger et al. 2021), fitted to `training`. It needs `pip install 'layerlens-torch[laplace]'`.
    - A list of models: an ensemble, such as the same network trained from several seeds.

    The score is the same in all of them: the class that the model itself predicts, where `target` is None. Methods that
    draw get another seed for each model, so that what their draws add can be taken from the variance over the models:
    deviation^2 = var_m(v_m) - mean_m(e_m^2), where e_m is the standard error of v_m.

    Args:
        models: where the models come from.
        method: name of the method, as in `saliency`; `"auto"` is chosen once, by the model itself.
        draws: number of models that are drawn, 2 or more; None is 20. A list is taken whole.
        options: options of the method, such as `{"steps": 20}`.
        training: data that the model was trained on, with labels, for `"laplace"`: pairs (x, label), or a `Data` with
            `labels=`. Class indices, or real numbers for a regression.
        posterior: options of `laplace.Laplace`, such as `{"prior_precision": 1.0, "hessian_structure": "full"}`. By
            default the prior precision maximizes the marginal likelihood, and the noise of a regression is the root
            mean square of its residuals.
        seed: seed of the models, and of the method unless `options` has one.

    Returns:
        An `EnsembleAttribution`: the mean, `.deviation` over the models, `.agreement` of their signs, `.interval()` of
        a value of another such model. Its checks are the `"score deviation"`, and of a method that draws the
        `"sampling share"`: how much of the variance over models its draws make up.

    Raises:
        InputError: when the model has no dropout, its output is not that of a linear layer with weights of its own, for
            `"laplace"`, or models of a list have other outputs.
        OptionError: when there are fewer than two models, or an option belongs to others.
        MissingPackage: when laplace-torch is not installed, for `"laplace"`.

    Warns:
        UserWarning: when some dropout stays off, see `models`; once for all models, what the method warns of.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        >>> found = model_uncertainty(net, torch.ones(1, 3), method="input_x_gradient", draws=10)
        >>> found.models, found.deviation.shape, bool((found.deviation > 0).all())
        (10, torch.Size([1, 3]), True)
    """
    check_seed(seed)
    count = _check(models, draws, training, posterior)
    given = dict(options or {})
    if own_options := sorted(given.keys() & {"target", "method", "where", "forward", "progress"}):
        raise OptionError(f"{own_options[0]}= is an option of model_uncertainty itself: take it out of options=.")
    with scoring(model, x, target, forward=forward, grad=False) as scorer:
        scorer(scorer.values())
        inputs, aim = scorer.inputs, scorer.target
        drawn = _source(model, models, inputs, count, training, posterior, seed, forward)
    chosen: dict[str, str] = {}
    if method == "auto":
        given, method, where, chosen = _chosen(model, inputs, aim, where, given, forward)
    row = method_named(method)
    first_seed = given.pop("seed", seed)
    check_seed(first_seed)
    found = _Moments()
    with each_once(f"model_uncertainty of {row.name}"):
        for number in track(range(count), f"model_uncertainty of {row.name}"):
            own: dict[str, Any] = {"seed": first_seed + number} if "seed" in row.parameters else {}
            with drawn(number) as (one, run):
                found.add(saliency(one, inputs, target=aim, method=row.name, where=where, forward=run, **given, **own))
    source = models if isinstance(models, str) else "given"
    return found.result({"models": source, "model seed": seed, **chosen}, count)


def _check(models: Any, draws: int | None, training: Any, posterior: Any) -> int:
    """Return the number of models.

    Raises:
        OptionError: when there are fewer than two, or an option belongs to others.
    """
    if isinstance(models, str):
        choose("models", models, ("dropout", "laplace"))
        count = 20 if draws is None else draws
        check_count("draws", count, least=2)
    else:
        if not isinstance(models, (list, tuple, nn.ModuleList)) or not all(
            isinstance(one, nn.Module) for one in models
        ):
            given = f"a list with {models!r:.60}" if isinstance(models, (list, tuple)) else describe(models)
            raise OptionError(f'models must be "dropout", "laplace" or a list of modules; got {given}.')
        if draws is not None:
            raise OptionError("draws= is the number of models that are drawn; a list of models is taken whole.")
        count = len(models)
    if count < 2:
        raise OptionError(f"a deviation over models needs two or more; got {count}.")
    if models == "laplace":
        if training is None:
            raise OptionError('models="laplace" needs the data the model was trained on: training=Data(x, labels=y).')
    elif training is not None or posterior is not None:
        raise OptionError('training= and posterior= belong to models="laplace".')
    return count


def _source(
    model: nn.Module,
    models: Any,
    inputs: Inputs,
    count: int,
    training: Samples | None,
    posterior: Mapping[str, Any] | None,
    seed: int,
    forward: Forward | None,
) -> Callable[[int], AbstractContextManager[Drawn]]:
    """Return what lends model number k within a `with` block, and what to call instead of it; `model` is borrowed."""
    if models == "dropout":
        run = WithDropout(forward, model, seed)
        run.prepare(model, inputs)
        return lambda number: nullcontext((model, run.chosen(number)))
    if models == "laplace":
        assert training is not None
        layer, weights = last_layer_weights(model, inputs, training, posterior or {}, count, seed, forward)

        @contextmanager
        def with_draw(number: int) -> Iterator[Drawn]:
            with with_weights(layer, weights[number]):
                yield model, forward

        return with_draw
    _check_outputs(model, models, inputs, forward)
    return lambda number: nullcontext((models[number], forward))


def _check_outputs(model: nn.Module, models: Sequence[nn.Module], inputs: Inputs, forward: Forward | None) -> None:
    """Check that an ensemble has the outputs of the model, so that a target is the same score in all of them.

    Raises:
        InputError: when the outputs of a sample have another shape.
    """
    shapes: list[tuple[int, ...] | None] = []
    for number, one in enumerate((model, *models)):
        with borrowed(one, grad=False):
            output = inputs.run(one, forward)
        try:
            main = main_output(output)
        except TargetError:  # the target reads something else
            return
        shapes.append(tuple(main.shape[1:]) if main.ndim and len(main) == inputs.batch else None)
        if None not in shapes and shapes[-1] != shapes[0]:
            raise InputError(
                f"the output of model {number - 1} of models= has shape {shapes[-1]} for a sample, and that of the "
                f"model itself {shapes[0]}: a target would be another score there. Give models with the same outputs."
            )


def _chosen(
    model: nn.Module, inputs: Inputs, aim: Any, where: Selection, given: dict[str, Any], forward: Forward | None
) -> tuple[dict[str, Any], str, Selection, dict[str, str]]:
    """The options, method and layer that `auto` takes, and why.

    Raises:
        OptionError: for options of a method that was not named.
    """
    known = {name: given.pop(name) for name in ("baseline", "baselines") if name in given}
    if given:
        raise OptionError(f"auto has no option {', '.join(map(repr, given))}: name the method, such as method='rise'.")
    choice = choose_method(model, inputs, target=aim, where=where, forward=forward, **known)
    options = dict(choice.options)
    return options, choice.name, options.pop("where", None), {"chosen": choice.chosen()}


class _Moments:
    """Sums over the models, in float64, value by value."""

    def __init__(self) -> None:
        self.first: Attribution | None = None
        self.means: Any = None
        self.squares: Any = None
        self.errors: Any = None
        self.above: Any = None
        self.below: Any = None
        self.scores: list[torch.Tensor] = []

    def add(self, one: Attribution) -> None:
        """Add the attribution by another model.

        Raises:
            InputError: when its values have another shape.
        """
        values = joined(lambda part: part.detach().double().cpu(), one.values)
        self.scores.append(one.score.detach().double().cpu())
        if self.first is None:
            self.first = one
            self.means, self.squares, self.above, self.below, self.errors = (
                joined(torch.zeros_like, values) for _ in range(5)
            )
        shapes = [joined(lambda part: part.shape, part) for part in (self.means, values)]
        if shapes[0] != shapes[1]:
            raise InputError(f"the models give values of different shapes, {shapes[0]} and {shapes[1]}.")
        number = len(self.scores)
        before = self.means
        self.means = joined(lambda mean, part: mean + (part - mean) / number, before, values)  # Welford 1962
        self.squares = joined(
            lambda total, part, old, new: total + (part - old) * (part - new), self.squares, values, before, self.means
        )
        self.above = joined(lambda total, part: total + (part > 0), self.above, values)
        self.below = joined(lambda total, part: total + (part < 0), self.below, values)
        if one.standard_error is None or self.errors is None:
            self.errors = None
        else:
            self.errors = joined(
                lambda total, error: total + error.detach().double().cpu().square(), self.errors, one.standard_error
            )

    def result(self, settings: dict[str, Any], count: int) -> EnsembleAttribution:
        """Return the mean and what varies."""
        first = self.first
        assert first is not None
        variance = joined(lambda total: total / (count - 1), self.squares)
        noise = joined(torch.zeros_like, variance) if self.errors is None else joined(lambda e: e / count, self.errors)

        def typed(parts: Any) -> Any:
            return joined(lambda part, like: part.to(like), parts, first.values)

        def agreeing(mean: torch.Tensor, above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
            zero = count - above - below
            return torch.where(mean > 0, above, torch.where(mean < 0, below, zero)) / count

        scores = torch.stack(self.scores)
        checks = {"score deviation": scores.std(dim=0)}
        if self.errors is not None:
            checks["sampling share"] = _sum(noise) / _sum(variance).clamp_min(torch.finfo(torch.float64).tiny)
        fields = {field.name: getattr(first, field.name) for field in dataclasses.fields(Attribution)}
        fields |= {
            "values": typed(self.means),
            "score": scores.mean(dim=0).to(first.score),
            "checks": checks,
            "settings": {**{name: one for name, one in first.settings.items() if name != "seed"}, **settings},
            "standard_error": None if self.errors is None else typed(joined(lambda n: (n / count).sqrt(), noise)),
            "degrees": None,
            "skewness": None,
            "cost": f"{count} times ({first.cost})",
        }
        return EnsembleAttribution(
            **fields,
            deviation=typed(joined(lambda v, n: (v - n).clamp_min(0).sqrt(), variance, noise)),
            agreement=typed(joined(agreeing, self.means, self.above, self.below)),
            models=count,
        )


def _sum(parts: Any) -> torch.Tensor:
    """The sum over all values of each sample, `(batch,)`."""
    each = parts.values() if isinstance(parts, dict) else [parts]
    return torch.stack([one.reshape(len(one), -1).sum(dim=1) for one in each]).sum(dim=0)
