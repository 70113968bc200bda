"""Infidelity and maximum sensitivity, by captum, in batches that fit."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.coalitions import Coalitions
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import InputError, OptionError, check_count, check_seed
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed, generator_states, restore_generators, seed_torch
from layerlens.model.trees import describe
from layerlens.results import Attribution
from layerlens.results.maps.attribution import Values
from layerlens.signatures import public
from layerlens.targets.target import Spec, as_target

from ..explaining import Explain, as_explain, floating_inputs


@public
def infidelity(
    model: nn.Module,
    x: Input,
    attribution: Attribution | Values,
    *,
    target: Spec = None,
    noise: float = 0.1,
    perturb_func: Callable[..., Any] | None = None,
    samples: int = 32,
    normalize: bool = True,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Measure how badly a map predicts the effect of noise on the score, `(batch,)`; lower is better.

    E[(I . phi - (S(x) - S(x - I)))^2], I normal (Yeh et al. 2019, definition 2.1), computed by
    `captum.metrics.infidelity`. Only values in units of the score per unit of the input can be faithful here: gradients
    and not gradient x input.

    Args:
        x: ... Floating-point tensors.
        attribution: values shaped like x; a dict by input name where there are several.
        noise: standard deviation of I, as a share of the standard deviation of x.
        perturb_func: makes the changes instead, as in captum: takes copies of x, `(n, ...)`, of several inputs a tuple,
            and returns I and the changed inputs, or these alone (I is then what they lack), in the same form. For
            values in units of the score I is the share of each value that is removed, 0 or 1.
        samples: number of draws of I.
        normalize: whether the map is scaled by the factor that fits best (captum's `normalize`).

    Raises:
        InputError: when x is not of floating-point tensors, or the values are not shaped like it.
        OptionError: when an option is out of range, or the changes are not shaped like x.
        TargetError: when the target does not fit the output.

    Example:
        >>> model = nn.Linear(3, 1).double()
        >>> x = torch.rand(2, 3).double()
        >>> infidelity(model, x, model.weight.detach().expand(2, 3), target=0).max() < 1e-12
        tensor(True)
    """
    check_count("samples", samples)
    check_seed(seed)
    if not noise > 0:
        raise OptionError(f"noise must be above 0, got {noise!r}.")
    if perturb_func is not None and noise != 0.1:
        raise OptionError(f"noise={noise!r} and perturb_func= both make the changes: give one.")
    from captum.metrics import infidelity as captum_infidelity

    with borrowed(model, grad=False):
        scorer = Scorer(model, x, target, forward=forward)
        values = floating_inputs(scorer, "infidelity")
        given = attribution.values if isinstance(attribution, Attribution) else attribution
        named = given if isinstance(given, dict) else {next(iter(values)): torch.as_tensor(given)}
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        if {name: tuple(one.shape) for name, one in named.items()} != shapes:
            raise InputError(
                f"infidelity needs one number per value of the input, {_shown(shapes)}; got {_shown(named)}."
            )
        limit = Coalitions(scorer, "zero", batch_size).batch_size
        generator = torch.Generator().manual_seed(seed)
        scales = [noise * value.std() for value in values.values()]
        ends, single, batch = tuple(values.values()), len(values) == 1, len(scorer.rows)

        def score(*changed: torch.Tensor) -> torch.Tensor:
            rows = scorer.rows.repeat_interleave(len(changed[0]) // batch)
            return scorer(dict(zip(values, changed, strict=True)), rows)

        def perturb(copies: Any) -> tuple[Any, Any]:
            if perturb_func is not None:
                return _changed(perturb_func, copies)
            found = []
            for one, scale in zip((copies,) if single else copies, scales, strict=True):
                change = torch.randn(one.shape, generator=generator, dtype=one.dtype).to(one) * scale
                found.append((change, one - change))
            return found[0] if single else tuple(zip(*found, strict=True))  # type: ignore[return-value]

        if perturb_func is not None:
            seed_torch(seed)
        maps = tuple(named[name].to(value) for name, value in values.items())
        found = captum_infidelity(
            score, perturb, ends[0] if single else ends, maps[0] if single else maps,
            n_perturb_samples=samples, normalize=normalize,
            max_examples_per_batch=min(max(limit, batch), samples * batch),
        )  # fmt: skip
    return torch.as_tensor(found).detach().double()


@public
def max_sensitivity(
    model: nn.Module,
    x: Input,
    explain: str | Explain,
    *,
    target: Spec = None,
    radius: float = 0.02,
    perturb_func: Callable[..., Any] | None = None,
    samples: int = 10,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Measure how much a map changes, at most, when the input changes a little, `(batch,)`; lower is steadier.

    max over ||y - x||_inf <= radius of ||phi(y) - phi(x)|| / ||phi(x)|| (Yeh et al. 2019, definition 4.1), over random
    y, computed by `captum.metrics.sensitivity_max`. A map that never looks at the input is steady too.

    Args:
        x: ... Floating-point tensors.
        explain: name of a saliency method, or a function `(model, x, target=..., forward=...) -> Attribution`.
        radius: largest change, as a share of the range of x.
        perturb_func: makes the changed inputs instead: takes copies of x, `(n, ...)`, of several inputs a tuple, and
            returns them changed, in the same form.
        samples: number of changed inputs.

    Raises:
        InputError: when x is not of floating-point tensors.
        OptionError: when an option is out of range, or the changed inputs are not shaped like x.
        TargetError: when the target does not fit the output.

    Example:
        >>> max_sensitivity(nn.Linear(3, 2), torch.rand(2, 3), "gradient", target=0)
        tensor([0., 0.], dtype=torch.float64)
    """
    check_count("samples", samples)
    check_seed(seed)
    if not radius > 0:
        raise OptionError(f"radius must be above 0, got {radius!r}.")
    if perturb_func is not None and radius != 0.02:
        raise OptionError(f"radius={radius!r} and perturb_func= both make the changes: give one.")
    from captum.metrics import sensitivity_max

    function, inputs = as_explain(explain, {}), as_inputs(x)
    with borrowed(model, grad=False):
        scorer = Scorer(model, inputs, as_target(target), forward=forward)
        values = floating_inputs(scorer, "max_sensitivity")
        with torch.no_grad():
            scorer(values)  # the predicted class is chosen here
    sizes = [radius * float(value.max() - value.min()) for value in values.values()]
    generator, batch = torch.Generator().manual_seed(seed), len(scorer.rows)
    ends = tuple(values.values())

    def explained(own: tuple[torch.Tensor, ...] | torch.Tensor) -> tuple[torch.Tensor, ...]:
        own = own if isinstance(own, tuple) else (own,)
        rows = torch.arange(batch, device=own[0].device).repeat_interleave(len(own[0]) // batch)
        copies = inputs.rows(rows).replace(dict(zip(values, own, strict=True)))
        singles = [
            (copies.rows(row.reshape(1)), scorer.target.on(None, rows[row].reshape(1)))
            for row in torch.arange(len(rows), device=rows.device)
        ]
        found = [function(model, single, target=target, forward=forward).values for single, target in singles]
        named = [one if isinstance(one, dict) else {"": one} for one in found]
        return tuple(torch.cat([one[name] for one in named]) for name in named[0])

    def changed(own: tuple[torch.Tensor, ...] | torch.Tensor, *_: object) -> tuple[torch.Tensor, ...]:
        own = own if isinstance(own, tuple) else (own,)
        if perturb_func is not None:
            moved = _changed(perturb_func, own if len(own) > 1 else own[0])[1]
            return moved if isinstance(moved, tuple) else (moved,)
        drawn = [torch.rand(one.shape, generator=generator, dtype=one.dtype).to(one) for one in own]
        return tuple(one + size * (2 * draw - 1) for one, size, draw in zip(own, sizes, drawn, strict=True))

    states = generator_states()
    try:
        if perturb_func is not None:
            seed_torch(seed)
        with contextlib.redirect_stderr(io.StringIO()):
            found = sensitivity_max(
                explained, ends if len(ends) > 1 else ends[0], changed, perturb_radius=max(sizes),
                n_perturb_samples=samples,
            )  # fmt: skip
    finally:
        restore_generators(states)
    return torch.as_tensor(found).detach().double()


def _changed(function: Callable[..., Any], copies: Any) -> tuple[Any, Any]:
    """Return what a function of the user takes from copies of the inputs, and the changed copies, each in their form.

    Raises:
        OptionError: when it returns something else.
    """
    several = isinstance(copies, tuple)
    returned = function(tuple(one.clone() for one in copies) if several else copies.clone())
    ends = copies if several else (copies,)

    def listed(part: Any) -> list[Any]:
        return list(part) if several and isinstance(part, (tuple, list)) else [part]

    def fits(part: Any) -> bool:
        return [getattr(one, "shape", None) for one in listed(part)] == [one.shape for one in ends]

    if fits(returned):
        moved = listed(returned)
        taken = [one - other for one, other in zip(ends, moved, strict=True)]
    elif isinstance(returned, (tuple, list)) and len(returned) == 2 and all(map(fits, returned)):
        taken, moved = (listed(part) for part in returned)
    else:
        raise OptionError(
            f"perturb_func returned {describe(returned)} for inputs {', '.join(map(describe, ends))}: it must "
            "return the changed inputs, shaped like them, or a pair (taken, changed)."
        )
    return (tuple(taken), tuple(moved)) if several else (taken[0], moved[0])


def _shown(shapes: Mapping[str, Any]) -> str:
    """Shapes by input name, in words."""
    return ", ".join(f"{name}: {tuple(getattr(one, 'shape', one))}" for name, one in shapes.items())
