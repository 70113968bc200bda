"""Cascading randomization: a map must change when the model is no longer the trained one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.statistics import spearman
from layerlens.analyzers.saliency.saliency import saliency
from layerlens.errors import InputError, OptionError, check_seed
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.model.placement import need_weights
from layerlens.probes.run import capture
from layerlens.progress import track
from layerlens.results import Attribution, LayerProfile
from layerlens.signatures import public
from layerlens.targets.target import Spec, Target, as_target


@public
def cascading_randomization(
    model: nn.Module,
    x: Input,
    method: str | Callable[..., Attribution] = "gradient",
    *,
    target: Spec = None,
    layers: Selection = None,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
    **options: Any,
) -> LayerProfile:
    """Measure how similar a map stays to the trained model's while layers are randomized, from the output down.

    Each step gives one more layer parameters drawn from a normal distribution with the mean and the deviation of its
    trained ones, and explains again (Adebayo et al. 2018, sec. 4). A method whose maps stay the same does not depend on
    those layers: it shows the input and not the model. The parameters are restored to the bit at the end, also after an
    error.

    Args:
        method: name of a saliency method, or a function `(model, x, target=..., forward=...) -> Attribution`.
        target: what to score, see `as_target`; None is the class that the trained model predicts.
        layers: layers to randomize, in reversed order of execution; None takes all that have parameters.
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
    inputs = as_inputs(x)

    def explain(aim: Target) -> torch.Tensor:
        if isinstance(method, str):
            found = saliency(model, inputs, target=aim, method=method, forward=forward, **options)
        else:
            found = method(model, inputs, target=aim, forward=forward, **options)
        return found.tensor.flatten(1)

    check_seed(seed)
    need_weights(model, "cascading_randomization")
    aim = as_target(target).on(inputs)
    with borrowed(model, grad=False), torch.no_grad():
        aim = aim.resolve(inputs.run(model, forward))
    record = capture(model, inputs, layers, reduce=lambda output: None, forward=forward)
    modules = dict(model.named_modules())
    ran = list(dict.fromkeys(call.layer for call in record.order))
    chosen = [path for path in reversed(ran) if next(modules[path].parameters(recurse=False), None) is not None]
    if not chosen:
        raise InputError("no selected layer that ran has parameters of its own to make random.")
    trained = explain(aim)
    rows = []
    with restored([parameter for path in chosen for parameter in modules[path].parameters(recurse=False)]):
        generator = torch.Generator().manual_seed(seed)
        done: set[int] = set()
        for path in track(chosen, "randomization"):
            for parameter in modules[path].parameters(recurse=False):
                if id(parameter) not in done:
                    done.add(id(parameter))
                    _randomize(parameter, generator, path)
            found = explain(aim)
            rows.append(torch.stack([spearman(found, trained), spearman(found.abs(), trained.abs())]))
    values = torch.stack(rows)  # (layers, 2, batch)
    batch = values.shape[2]
    return LayerProfile(
        quantity="rank correlation with the trained model's map",
        layers=tuple(chosen),
        values=values.mean(dim=2),
        units="1",
        signed=True,
        method=f"cascading randomization of {_name(method)}",
        settings={"seed": seed, "target": aim.label, **options},
        series=("values", "absolute values"),
        error=values.std(dim=2) / batch**0.5 if batch > 1 else None,
    )


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


def _name(method: str | Callable[..., Attribution]) -> str:
    """Return a method's name, also for a partial function."""
    inner = getattr(method, "func", method)
    return inner if isinstance(inner, str) else getattr(inner, "__name__", type(inner).__name__)
