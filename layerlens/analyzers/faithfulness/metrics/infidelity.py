"""Infidelity and maximum sensitivity, by captum, in batches that fit."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.coalitions import Coalitions
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import InputError, OptionError, check_count, check_seed
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.results import Attribution
from layerlens.signatures import public
from layerlens.targets.target import Spec, as_target


@public
def infidelity(
    model: nn.Module,
    x: Input,
    attribution: Attribution | torch.Tensor,
    *,
    target: Spec = None,
    noise: float = 0.1,
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
        x: ... One floating-point tensor.
        attribution: values shaped like x.
        noise: standard deviation of I, as a share of the standard deviation of x.
        samples: number of draws of I.
        normalize: whether the map is scaled by the factor that fits best (captum's `normalize`).

    Raises:
        InputError: when x is not a single floating-point tensor, or the values are not shaped like it.
        OptionError: when an option is out of range.
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
    from captum.metrics import infidelity as captum_infidelity

    with borrowed(model, grad=False):
        scorer = Scorer(model, x, target, forward=forward)
        name, value = _single(scorer, "infidelity")
        given = attribution.tensor if isinstance(attribution, Attribution) else torch.as_tensor(attribution)
        if given.shape != value.shape:
            raise InputError(
                f"infidelity needs one number per value of the input {tuple(value.shape)}, got {tuple(given.shape)}."
            )
        limit = Coalitions(scorer, "zero", batch_size).batch_size
        generator, scale = torch.Generator().manual_seed(seed), noise * value.std()

        def score(values: torch.Tensor) -> torch.Tensor:
            return scorer({name: values}, scorer.rows.repeat_interleave(len(values) // len(scorer.rows)))

        def perturb(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            change = torch.randn(values.shape, generator=generator, dtype=values.dtype).to(values) * scale
            return change, values - change

        found = captum_infidelity(
            score, perturb, value, given.to(value), n_perturb_samples=samples, normalize=normalize,
            max_examples_per_batch=min(max(limit, len(value)), samples * len(value)),
        )  # fmt: skip
    return torch.as_tensor(found).detach().double()


@public
def max_sensitivity(
    model: nn.Module,
    x: Input,
    explain: Callable[..., Attribution],
    *,
    target: Spec = None,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Measure how much a map changes, at most, when the input changes a little, `(batch,)`; lower is steadier.

    max over ||y - x||_inf <= radius of ||phi(y) - phi(x)|| / ||phi(x)|| (Yeh et al. 2019, definition 4.1), over random
    y, computed by `captum.metrics.sensitivity_max`. A map that never looks at the input is steady too.

    Args:
        x: ... One floating-point tensor.
        explain: `(model, x, target=..., forward=...) -> Attribution`, such as `layerlens.analyzers.saliency.gradient`.
        radius: largest change, as a share of the range of x.
        samples: number of changed inputs.

    Raises:
        InputError: when x is not a single floating-point tensor.
        OptionError: when an option is out of range.
        TargetError: when the target does not fit the output.

    Example:
        >>> from layerlens.analyzers.saliency import gradient
        >>> max_sensitivity(nn.Linear(3, 2), torch.rand(2, 3), gradient, target=0)
        tensor([0., 0.], dtype=torch.float64)
    """
    check_count("samples", samples)
    check_seed(seed)
    if not radius > 0:
        raise OptionError(f"radius must be above 0, got {radius!r}.")
    from captum.metrics import sensitivity_max

    inputs = as_inputs(x)
    with borrowed(model, grad=False):
        scorer = Scorer(model, inputs, as_target(target), forward=forward)
        name, value = _single(scorer, "max_sensitivity")
        with torch.no_grad():
            scorer({name: value})  # the predicted class is chosen here
    size = radius * float(value.max() - value.min())
    generator = torch.Generator().manual_seed(seed)

    def explained(values: tuple[torch.Tensor, ...] | torch.Tensor) -> tuple[torch.Tensor, ...]:
        (own,) = values if isinstance(values, tuple) else (values,)
        rows = torch.arange(len(value), device=own.device).repeat_interleave(len(own) // len(value))
        changed = inputs.rows(rows).replace({name: own})
        singles = [
            (changed.rows(row.reshape(1)), scorer.target.on(None, rows[row].reshape(1)))
            for row in torch.arange(len(own), device=own.device)
        ]
        found = [explain(model, single, target=target, forward=forward) for single, target in singles]
        return (torch.cat([one.tensor for one in found]),)

    def changed(values: tuple[torch.Tensor, ...] | torch.Tensor, *_: object) -> tuple[torch.Tensor, ...]:
        (own,) = values if isinstance(values, tuple) else (values,)
        change = torch.rand(own.shape, generator=generator, dtype=own.dtype).to(own)
        return (own + size * (2 * change - 1),)

    with contextlib.redirect_stderr(io.StringIO()):
        found = sensitivity_max(explained, value, changed, perturb_radius=size, n_perturb_samples=samples)
    return torch.as_tensor(found).detach().double()


def _single(scorer: Scorer, what: str) -> tuple[str, torch.Tensor]:
    """Return name and value of the one floating-point input.

    Raises:
        InputError: when there are several.
    """
    found = {name: leaf.value for name, leaf in scorer.leaves.items() if leaf.is_input}
    if len(found) != 1 or len(scorer.leaves) != 1:
        raise InputError(f"{what} needs one floating-point input; the leaves are {', '.join(scorer.leaves)}.")
    ((name, value),) = found.items()
    return name, value
