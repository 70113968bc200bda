"""Randomization: a map must change when the model is no longer the trained one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.statistics import spearman
from layerlens.errors import InputError, OptionError, check_count, check_seed, choose
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.model.placement import need_weights
from layerlens.probes.run import capture
from layerlens.progress import track
from layerlens.results import LayerProfile
from layerlens.signatures import Function, documented, public, with_section
from layerlens.targets.target import Spec, Target, as_target

from .explaining import Explain, as_explain, flat_map, moved

Order = Literal["top_down", "bottom_up"]


@public
def cascading_randomization(
    model: nn.Module,
    x: Input,
    method: str | Explain = "gradient",
    *,
    target: Spec = None,
    layers: Selection = None,
    order: Order = "top_down",
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
    **options: Any,
) -> LayerProfile:
    """Measure how similar a map stays to the trained model's while layers are randomized, one by one.

    Each step gives one more layer parameters drawn from a normal distribution with the mean and the deviation of its
    trained ones, and explains again (Adebayo et al. 2018, sec. 4). A method whose maps stay the same does not depend on
    those layers: it shows the input and not the model. It is `MPRT` in Quantus, which draws parameters as the layers do
    when they are made. The parameters are restored to the bit at the end, also after an error.

    Args:
        method: name of a saliency method, or a function `(model, x, target=..., forward=...) -> Attribution`.
        target: what to score, see `as_target`; None is the class that the trained model predicts.
        layers: layers to randomize; None takes all that have parameters.
        order: `"top_down"`, from the output down, or `"bottom_up"`, in the order of execution.
        **options: options of the method.

    Returns:
        A `LayerProfile`, in the order of randomization, of Spearman's rank correlation with the map of the trained
        model, mean over samples, for `"values"` and `"absolute values"`; `error` is its standard error.

    Raises:
        InputError: when no layer that ran has parameters.
        OptionError: when the method is unknown, or the parameters are quantized.
        TargetError: when the target does not fit the output.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        >>> cascading_randomization(model, torch.randn(2, 6), "gradient", target=0).layers
        ('2', '0')
    """
    with _randomizing(
        model, x, method, target, layers, order, seed, forward, options, "cascading_randomization"
    ) as run:
        trained = run.explain()
        rows = []
        for _ in run.steps():
            found = run.explain()
            rows.append(torch.stack([spearman(found, trained), spearman(found.abs(), trained.abs())]))
    values = torch.stack(rows)  # (layers, 2, batch)
    batch = values.shape[2]
    return LayerProfile(
        quantity="rank correlation with the trained model's map",
        layers=tuple(run.layers),
        values=values.mean(dim=2),
        units="1",
        signed=True,
        method=f"cascading randomization of {_name(method)}",
        settings={"seed": seed, "order": order, "target": run.target.label, **options},
        series=("values", "absolute values"),
        error=values.std(dim=2) / batch**0.5 if batch > 1 else None,
    )


_ARGS = {
    "method": "name of a saliency method, or a function `(model, x, target=..., forward=...) -> Attribution`.",
    "target": "what to score, see `as_target`; None is the class that the trained model predicts.",
    "layers": "layers to randomize; None takes all that have parameters.",
    "options": "options of the method.",
}
_RAISES = {
    "InputError": "when no layer that ran has parameters.",
    "OptionError": "when an option is out of range, or the parameters are quantized.",
    "TargetError": "when the target does not fit the output.",
}


def _test(function: Function) -> Function:
    """Make a test public, with the texts that all of them share."""
    text = documented(function.__doc__ or "", inspect.signature(function).parameters, _ARGS)
    function.__doc__ = with_section(text, "Raises", _RAISES)
    return public(function)


@_test
def smooth_mprt(
    model: nn.Module,
    x: Input,
    method: str | Explain = "gradient",
    *,
    target: Spec = None,
    layers: Selection = None,
    order: Order = "bottom_up",
    samples: int = 10,
    noise: float = 0.1,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
    **options: Any,
) -> torch.Tensor:
    """Measure how similar a map without its noise stays while layers are randomized, `(batch,)`; lower is better.

    Maps are means over noisy copies of x, so that noise of the map is not taken for dependence on the model; the value
    is the mean over layers of Spearman's rank correlation of their absolute values (Hedström et al. 2023, sec. 4.1;
    `SmoothMPRT` in Quantus). `cascading_randomization` shows it layer by layer, without the noise.

    Args:
        order: `"bottom_up"`, in the order of execution, as published, or `"top_down"`.
        samples: number of copies; the last has no noise.
        noise: standard deviation, as a share of the range of each sample.

    Raises:
        OptionError: when an option is out of range, or the parameters are quantized.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        >>> smooth_mprt(model, torch.randn(2, 6), "gradient", target=0, samples=2).shape
        torch.Size([2])
    """
    check_count("samples", samples)
    if not noise >= 0:
        raise OptionError(f"noise must not be negative, got {noise!r}.")
    with _randomizing(model, x, method, target, layers, order, seed, forward, options, "smooth_mprt") as run:
        copies = list(_noisy(run.inputs, samples, noise, seed))

        def smooth() -> torch.Tensor:
            return torch.stack([run.explain(copy) for copy in copies]).mean(dim=0).abs()

        trained = smooth()
        return torch.stack([spearman(smooth(), trained) for _ in run.steps()]).mean(dim=0)


@_test
def efficient_mprt(
    model: nn.Module,
    x: Input,
    method: str | Explain = "gradient",
    *,
    target: Spec = None,
    layers: Selection = None,
    bins: int = 100,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
    **options: Any,
) -> torch.Tensor:
    """Measure how much more complex a map becomes when all layers are randomized, `(batch,)`; higher is better.

    (C(map of the random model) - C(map)) / C(map), C the entropy of a histogram of the values (Hedström et al. 2023,
    sec. 4.2; `EfficientMPRT` in Quantus); infinite where the map has one value and the random model's has several.

    Args:
        bins: number of bins of the histogram.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        >>> efficient_mprt(model, torch.randn(2, 6), "gradient", target=0).shape
        torch.Size([2])
    """
    check_count("bins", bins)
    with _randomizing(model, x, method, target, layers, "bottom_up", seed, forward, options, "efficient_mprt") as run:
        trained = _histogram_entropy(run.explain(), bins)
        for _ in run.steps():
            pass
        rise = _histogram_entropy(run.explain(), bins) - trained
    return torch.where(rise == 0, rise, rise / trained)


class _Randomizing:
    """A model whose layers are randomized one after the other.

    Attributes:
        inputs: the input.
        target: the target, chosen by the trained model.
        layers: the layers, in the order of randomization.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, explain: Callable[[Inputs], torch.Tensor], target: Target,
        layers: list[str], seed: int,
    ) -> None:  # fmt: skip
        self.inputs, self.target, self.layers, self.seed = inputs, target, layers, seed
        self._explain, self._modules = explain, dict(model.named_modules())

    def explain(self, inputs: Inputs | None = None) -> torch.Tensor:
        """Return the map of the model as it is, `(batch, values)`."""
        return self._explain(self.inputs if inputs is None else inputs)

    def steps(self) -> Iterator[str]:
        """Randomize one more layer at a time.

        Yields:
            Its path.
        """
        generator = torch.Generator().manual_seed(self.seed)
        done: set[int] = set()
        for path in track(self.layers, "randomization"):
            for parameter in self._modules[path].parameters(recurse=False):
                if id(parameter) not in done:
                    done.add(id(parameter))
                    _randomize(parameter, generator, path)
            yield path


@contextmanager
def _randomizing(
    model: nn.Module,
    x: Input,
    method: str | Explain,
    target: Spec,
    layers: Selection,
    order: Order,
    seed: int,
    forward: Forward | None,
    options: dict[str, Any],
    name: str,
) -> Iterator[_Randomizing]:
    """Find the layers to randomize, and restore their parameters at the end.

    Yields:
        The model, ready to be randomized.

    Raises:
        InputError: when no layer that ran has parameters.
    """
    check_seed(seed)
    choose("order", order, ("top_down", "bottom_up"))
    need_weights(model, name)
    explain, inputs = as_explain(method, options), as_inputs(x)
    aim = as_target(target).on(inputs)
    with borrowed(model, grad=False), torch.no_grad():
        aim = aim.resolve(inputs.run(model, forward))
    record = capture(model, inputs, layers, reduce=lambda output: None, forward=forward)
    modules = dict(model.named_modules())
    ran = list(dict.fromkeys(call.layer for call in record.order))
    chosen = [path for path in ran if next(modules[path].parameters(recurse=False), None) is not None]
    if not chosen:
        raise InputError("no selected layer that ran has parameters of its own to make random.")
    if order == "top_down":
        chosen.reverse()

    def explained(inputs: Inputs) -> torch.Tensor:
        return flat_map(explain(model, inputs, target=aim, forward=forward))

    with restored([parameter for path in chosen for parameter in modules[path].parameters(recurse=False)]):
        yield _Randomizing(model, inputs, explained, aim, chosen, seed)


def _noisy(inputs: Inputs, samples: int, noise: float, seed: int) -> Iterator[Inputs]:
    """Yield copies of an input with normal noise, the same draws for all samples; the last without.

    Raises:
        InputError: when no input is a floating-point tensor.
    """
    generator = torch.Generator().manual_seed(seed)
    floating = [name for name, value in inputs.floating().items() if value.ndim]
    if not floating and samples > 1:
        raise InputError(
            "smooth_mprt adds noise to inputs, and none is floating-point: give inputs_embeds=..., or samples=1."
        )
    for _ in range(samples - 1):
        yield moved(inputs, floating, noise, lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64))
    yield inputs


def _histogram_entropy(values: torch.Tensor, bins: int) -> torch.Tensor:
    """Return the entropy of a histogram of each row, `(batch,)`."""
    counts = torch.stack([torch.histc(row.cpu(), bins) for row in values])
    entropy: torch.Tensor = torch.special.entr(counts / counts.sum(dim=1, keepdim=True))
    return entropy.sum(dim=1).to(values.device)


@contextmanager
def restored(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Restore parameters, which may be overwritten in the block, to the bit.

    Yields:
        Nothing.
    """
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, own in zip(parameters, kept, strict=True):
                parameter.copy_(own)


def _randomize(parameter: nn.Parameter, generator: torch.Generator, path: str) -> None:
    """Draw a parameter.

    Raises:
        OptionError: when it is not a floating-point tensor.
    """
    if not parameter.is_floating_point():
        raise OptionError(f"layer {path!r} holds parameters of type {parameter.dtype}, which cannot be drawn.")
    with torch.no_grad():
        own = parameter.detach().double()
        spread = own.std() if own.numel() > 1 else own.abs().sum()
        drawn = torch.randn(own.shape, generator=generator, dtype=torch.float64).to(own.device)
        parameter.copy_((own.mean() + spread * drawn).to(parameter))


def _name(method: str | Explain) -> str:
    """Return a method's name, also for a partial function."""
    inner = getattr(method, "func", method)
    return inner if isinstance(inner, str) else getattr(inner, "__name__", type(inner).__name__)
