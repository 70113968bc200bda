"""The health of layers over a data set: dead, doubled and saturated units, zeros, spread, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.features.batch_targets import check_length, class_lists, of_batch
from layerlens.analyzers.common.features.feature_batches import Source, distinct, run_once, worth_telling
from layerlens.analyzers.common.messages import listed, warn_left_out
from layerlens.analyzers.common.null_model import shuffled
from layerlens.errors import InputError, OptionError, check_count, warn
from layerlens.inputs.batches import Samples
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
from layerlens.model.layers import Selection
from layerlens.results import LayerHealth
from layerlens.targets.target import Spec, as_target

from ..training.gradient_norms import gradient_norms, loss
from .unit_moments import UnitReader, Units

SERIES = ("dead", "doubled", "saturated", "zero", "not finite")
ENOUGH = 30
"""Samples below which a unit is easily called dead."""


def health(
    model: nn.Module,
    data: Samples,
    layers: Selection = None,
    *,
    target: Spec = None,
    double: float = 0.999,
    widest: int = 2048,
    null: bool = False,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Callable[[Any], Inputs] = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerHealth:
    """Which units of every layer are dead, doubled or saturated over a data set; how large values and gradients are.

    Of each layer's values h, unit by unit (channel, feature) over all samples and places:

    - dead: units that are constant, and units of a rectifier (ReLU, GELU, SiLU, ...) that are never above zero. A dead
      unit was silent for the n samples seen: with 95 % confidence it answers to less than 1 - .05^(1/n), about 3/n,
      of such samples (the rule of three, Hanley & Lippman-Hand 1983), so n is in the result;
    - doubled: units whose correlation with an earlier unit is at least `double` in size;
    - saturated: values within 2 % of an end of the layer's range, of sigmoid, tanh, ReLU6 and the like, and of
      recurrent layers' outputs; NaN for layers without ends;
    - zero, and not finite: shares of the values;
    - mean and standard deviation of the values, and with a target the norm of the gradient of its score by the layer's
      output, mean over samples: it tells vanishing and exploding gradients.

    The data is read once; memory is that of one batch and of `units x units` numbers per layer. Cost: F for each
    sample, two runs of the first batch more; with a target F + B for each sample more, with the null F more.

    Args:
        model: any module; it is run in eval mode.
        data: samples, see `layerlens.inputs.batches`.
        layers: which layers, see `Selection`; None for every distinct activation (of layers that hand on the same
            tensor, the first).
        target: of the gradients: a score, as in `layerlens.as_target`; `"label"` the score of each sample's
            label in the data, `"loss"` its cross-entropy. None for no gradients.
        double: correlation from which a unit repeats another.
        widest: units above which no doubles are looked for in a layer.
        null: also measure the model with the entries of each parameter tensor in random order.
        batch_size: samples that run together.
        batched: whether the items of an iterable are batches; None: those of a DataLoader are.
        read: makes model inputs of a batch, or of one text.
        seed: of the null, and for models that draw numbers.
        progress: whether to show a bar; None shows it in a terminal.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        `LayerHealth`: the shares by layer, with the standard error over samples of the last three, the dead units and
        the doubled ones by number, and the samples seen.

    Raises:
        InputError: when there are fewer than two samples, or no layer can be read.
        LayerNotFound: when the selection matches no layer.
        OptionError: when an option is out of range.
        TargetError: when the target does not fit, or no gradient leads to the layers.

    Warns:
        UserWarning: for fewer than 30 samples, for values that are not finite, and for layers left out.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with torch.no_grad():
        ...     net[0].bias[1] = -100  # its ReLU is never above zero
        >>> found = health(net, torch.randn(100, 4))
        >>> found.dead, round(found.of("1")["bound of dead"], 3)
        ({'1': (1,)}, 0.03)
    """
    check_count("widest", widest)
    if isinstance(double, bool) or not isinstance(double, (int, float)) or not 0 < double <= 1:
        raise OptionError(f"double must be a correlation above 0 and at most 1, got {double!r}.")
    aim = None if isinstance(target, str) and target in ("label", "loss") else as_target(target)
    lists = class_lists(aim) if target is not None else []
    source = Source(data, batch_size, batched, read, progress, "health")
    reader = UnitReader(model, layers, forward, widest)
    twin: UnitReader | None = None
    gradients: dict[str, list[torch.Tensor]] = {}
    count = 0
    for batch in source.batches(model):
        if not count:
            chosen = distinct(model, batch.inputs, forward) if layers is None else layers
            reader = UnitReader(model, chosen, forward, widest)
            twin = UnitReader(model, chosen, shuffled(model, forward, seed), widest) if null else None
        for one in (reader, twin):
            if one is not None:
                one.left_out.update(run_once(one, batch.inputs, seed + count).left_out)
        if target is not None:
            score = loss(batch) if isinstance(target, str) and target == "loss" else of_batch(aim, batch)
            for name, norms in gradient_norms(model, batch.inputs, reader.layers, score, forward, seed + count).items():
                gradients.setdefault(name, []).append(norms)
        count += batch.inputs.batch
    check_length(lists, count)
    if count < 2:
        raise InputError("health: one sample cannot tell a dead unit from a live one; give two or more.")
    left_out = reader.finish()
    names = tuple(reader.units)
    if not names:
        raise InputError(f"no layer can be read. {'; '.join(f'{k}: {v}' for k, v in list(left_out.items())[:5])}")
    every = [reader.units[name] for name in names]
    values, error = _shares(every, double)
    moments = torch.tensor([units.moments() for units in every], dtype=torch.float64)
    samples = torch.tensor([units.samples for units in every])
    doubles = {name: tuple(units.doubles(double) or ()) for name, units in zip(names, every, strict=True)}
    dead = {name: tuple(units.dead().nonzero().squeeze(1).tolist()) for name, units in zip(names, every, strict=True)}
    _warn(names, values, count, left_out, layers is not None)
    return LayerHealth(
        quantity="share of units or values",
        layers=names,
        values=values,
        units="1",
        signed=False,
        method=f"{count} samples",
        settings={
            "target": target if isinstance(target, str) or aim is None or target is None else aim.label,
            "double": double,
            "widest": widest,
            "seed": seed,
            "no doubles sought": [n for n, units in zip(names, every, strict=True) if units.doubles(double) is None],
            "left_out": left_out,
        },
        series=SERIES,
        error=error,
        null=None if twin is None else _aligned(twin, names, double),
        explanation=(
            "Dead units gave the same answer to every sample, doubled ones repeat an earlier unit, saturated values "
            "lie at an end of their range, where no gradient passes.",
            f"Dead is what {count} samples did not wake (one in {1 / (1 - 0.05 ** (1 / count)):.0f} others may): it "
            "depends on the samples seen, and a unit that lives may still not matter to the output.",
        ),
        dead={name: units for name, units in dead.items() if units},
        doubles={name: pairs for name, pairs in doubles.items() if pairs},
        mean=moments[:, 0],
        std=moments[:, 1],
        gradient=None
        if target is None
        else torch.stack(
            [torch.cat(gradients[n]).mean() if n in gradients else torch.tensor(torch.nan) for n in names]
        ),
        samples=samples,
        bound=1 - 0.05 ** (1 / samples.double()),
    )


def _shares(every: list[Units], double: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The series of each layer and their standard errors over samples, `(layers, series)`."""
    values, errors = [], []
    for units in every:
        count = len(units.total)
        doubles = units.doubles(double)
        shares = torch.cat(units.per_sample)[:, :3]
        error = shares.std(dim=0) / len(shares) ** 0.5 if len(shares) > 1 else torch.full((3,), torch.nan)
        means = shares.mean(dim=0)
        if units.spans is None:
            means[0] = error[0] = torch.nan
        dead = float(units.dead().double().mean())
        values.append([dead, torch.nan if doubles is None else len(doubles) / count, *means.tolist()])
        errors.append([torch.nan, torch.nan, *error.tolist()])
    return torch.tensor(values, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64)


def _aligned(twin: UnitReader, names: tuple[str, ...], double: float) -> torch.Tensor:
    """The shares of the twin at the same layers; NaN where it has none."""
    twin.finish()
    null = torch.full((len(names), len(SERIES)), torch.nan, dtype=torch.float64)
    known = [place for place, name in enumerate(names) if name in twin.units]
    if known:
        null[known] = _shares([twin.units[names[place]] for place in known], double)[0]
    return null


def _warn(names: tuple[str, ...], values: torch.Tensor, count: int, left_out: dict[str, str], explicit: bool) -> None:
    """Say what would mislead."""
    warn_left_out("health", worth_telling(left_out, explicit), explicit)
    if count < ENOUGH:
        bound = 1 - 0.05 ** (1 / count)
        warn(
            f"health: over {count} samples a unit that answers to {bound:.0%} of inputs may be called dead; give more.",
        )
    if odd := [name for name, share in zip(names, values[:, 4].tolist(), strict=True) if share]:
        warn(f"health: {listed(odd)} holds values that are not finite.")
