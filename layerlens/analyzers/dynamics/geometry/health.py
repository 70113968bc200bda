"""The health of layers over a data set: dead, doubled and saturated units, zeros, spread, gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.measured_calls import row_norms
from layerlens.analyzers.common.features.batch_targets import check_length, of_batch
from layerlens.analyzers.common.features.feature_batches import warn_unread
from layerlens.analyzers.common.messages import first_reasons, listed
from layerlens.analyzers.common.null_model import shuffled
from layerlens.axes.follow import Followed
from layerlens.axes.followed import followed
from layerlens.errors import AxesUnknown, InputError, OptionError, RecordError, check_count, warn
from layerlens.inputs.batches import Batch, Data, Read, Samples
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
from layerlens.model.borrowed import borrowed, seed_torch
from layerlens.model.fastpath import layers_called
from layerlens.model.layers import LayerPath, Selection
from layerlens.model.tensors import tensor_path
from layerlens.probes.call import Call
from layerlens.probes.run import capture
from layerlens.results import LayerHealth
from layerlens.signatures import public
from layerlens.targets.outputs import class_scores
from layerlens.targets.target import Spec, Target, as_target

from .unit_moments import UnitReader, Units

SERIES = ("dead", "doubled", "saturated", "zero", "not finite")
ENOUGH = 30
"""Samples below which a unit is easily called dead."""


@public(renamed={"widest": "max_units"})
def health(
    model: nn.Module,
    data: Samples,
    layers: Selection = None,
    *,
    target: Spec = None,
    double: float = 0.999,
    max_units: int = 2048,
    null: bool = False,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Read = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerHealth:
    """Find the dead, doubled and saturated units of every layer, and measure its values and gradients.

    Of each layer's values h, unit by unit (channel, feature) over all samples and places:

    - dead: units that are constant, and units of a rectifier (ReLU, GELU, SiLU, ...) that are never above zero. A dead
      unit was silent for the n samples seen: with 95 % confidence it answers to less than 1 - .05^(1/n), about 3/n,
      of such samples (the rule of three, Hanley & Lippman-Hand 1983), so n is in the result;
    - doubled: units whose |correlation| with an earlier unit is at least `double`;
    - saturated: values within 2 % of an end of the layer's range, for sigmoid, tanh, ReLU6 and similar, and for the
      outputs of recurrent layers; NaN for layers without ends;
    - zero, and not finite: shares of the values;
    - mean and standard deviation of the values; with a target, the norm of the gradient of its score with respect to
      the layer's output, mean over samples: it shows vanishing and exploding gradients.

    The data is read once; memory is one batch and `units x units` numbers per layer. Cost: F for each sample, two more
    runs of the first batch; with a target F + B more for each sample, with the null F more.

    Args:
        layers: which layers, see `Selection`; None for every layer but those that return another's output.
        target: score whose gradients are measured, see `as_target`; `"label"` is the score of each sample's label in
            the data, `"loss"` its cross-entropy. None for no gradients.
        double: correlation at which a unit counts as a double of another.
        max_units: units above which no doubles are looked for in a layer.
        null: whether to measure the model with the entries of each parameter tensor in random order as well.

    Returns:
        `LayerHealth`: the shares by layer, with the standard error over samples of the last three, the dead and the
        doubled units by number, and the number of samples seen.

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
    check_count("max_units", max_units)
    if isinstance(double, bool) or not isinstance(double, (int, float)) or not 0 < double <= 1:
        raise OptionError(f"double must be a correlation above 0 and at most 1, got {double!r}.")
    by_label = isinstance(target, str) and target in ("label", "loss")
    score = None if by_label else as_target(target)
    data = Data.of(data, batch_size=batch_size, batched=batched, read=read, progress=progress)
    reader = UnitReader(model, layers, forward, max_units)
    twin: UnitReader | None = None
    gradients: dict[str, list[torch.Tensor]] = {}
    count = 0
    for batch in data.batches(model, "health"):
        reader.add(batch.inputs, seed + count)
        if null:
            twin = twin or UnitReader(model, reader.layers, shuffled(model, forward, seed), max_units)
            twin.add(batch.inputs, seed + count)
        if target is not None:
            scored = _cross_entropy(batch) if by_label and target == "loss" else of_batch(score, batch)
            norms = _gradient_norms(model, batch.inputs, reader.layers, scored, forward, seed + count)
            for name, norm in norms.items():
                gradients.setdefault(name, []).append(norm)
        count += batch.inputs.batch
    check_length(score if target is not None else None, count)
    if count < 2:
        raise InputError("health: one sample cannot tell a dead unit from a live one; give two or more.")
    left_out = reader.finish()
    names = tuple(reader.units)
    if not names:
        raise InputError(f"no layer can be read. {first_reasons(left_out)}")
    layer_units = list(reader.units.values())
    values, error = _shares(layer_units, double)
    moments = torch.tensor([units.moments() for units in layer_units], dtype=torch.float64)
    samples = torch.tensor([units.samples for units in layer_units])
    doubles = {name: units.doubles(double) for name, units in reader.units.items()}
    dead = {name: tuple(units.dead().nonzero().squeeze(1).tolist()) for name, units in reader.units.items()}
    _warn(names, values, count, left_out, layers is not None)
    return LayerHealth(
        quantity="share of units or values",
        layers=names,
        values=values,
        units="1",
        signed=False,
        method=f"{count} samples",
        settings={
            "target": target if isinstance(target, str) or target is None or score is None else score.label,
            "double": double,
            "max_units": max_units,
            "seed": seed,
            "no doubles sought": [name for name, pairs in doubles.items() if pairs is None],
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
        doubles={name: tuple(pairs) for name, pairs in doubles.items() if pairs},
        mean=moments[:, 0],
        std=moments[:, 1],
        gradient=None if target is None else torch.stack([_mean(gradients.get(name)) for name in names]),
        samples=samples,
        bound=1 - 0.05 ** (1 / samples.double()),
    )


def _cross_entropy(batch: Batch) -> Target:
    """Score each sample by the cross-entropy of its label."""
    chosen = of_batch(None, batch)

    def entropy(output: Any, rows: torch.Tensor) -> torch.Tensor:
        return class_scores(output).logsumexp(dim=1) - chosen(output, rows)

    return Target(entropy, "cross-entropy")


def _gradient_norms(
    model: nn.Module,
    inputs: Inputs,
    layers: list[LayerPath],
    score: Target,
    forward: Forward | None,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Return by call of a layer the norm of the gradient of each sample's score, `(batch,)`."""
    found: dict[str, torch.Tensor] = {}
    axes = followed(model, inputs, forward)
    with borrowed(model), layers_called():
        seed_torch(seed)
        record = capture(
            model, inputs, layers, keep="reference", reduce=lambda output: None, gradients=True, target=score,
            forward=forward,
        )  # fmt: skip
        for call in record.order:
            parts = {} if call.gradients is None else call.gradients.found
            name = f"{call.layer} #{call.index}" if call.index else call.layer
            squares: list[torch.Tensor] = []
            for tensor, gradient in parts.items():
                axis = None if gradient is None else _sample_axis(axes, call, tensor, gradient)
                if gradient is not None and axis is not None and gradient.shape[axis] == inputs.batch:
                    found[tensor_path(name, tensor)] = norms = row_norms(gradient, axis, inputs.batch)
                    squares.append(norms.square())
            if squares:  # of all tensors that the layer returned
                found[name] = torch.stack(squares).sum(dim=0).sqrt()
    return found


def _sample_axis(axes: Followed, call: Call, tensor: str, gradient: torch.Tensor) -> int | None:
    """Return the axis of samples; None where it is not known, so that the layer was left out, or there is none."""
    try:
        return axes.site(call.layer, call.index).batch_axis(gradient, tensor)
    except (AxesUnknown, RecordError):
        return None


def _mean(norms: list[torch.Tensor] | None) -> torch.Tensor:
    return torch.tensor(torch.nan) if norms is None else torch.cat(norms).mean()


def _shares(every: list[Units], double: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the series of each layer and their standard errors over samples, `(layers, series)`."""
    values, errors = [], []
    for units in every:
        count = len(units.total)
        doubles = units.doubles(double)
        shares = torch.cat(units.per_sample)[:, :3]
        error = shares.std(dim=0) / len(shares) ** 0.5 if len(shares) > 1 else torch.full((3,), torch.nan)
        means = shares.mean(dim=0)
        if units.ends is None:
            means[0] = error[0] = torch.nan
        dead = float(units.dead().double().mean())
        values.append([dead, torch.nan if doubles is None else len(doubles) / count, *means.tolist()])
        errors.append([torch.nan, torch.nan, *error.tolist()])
    return torch.tensor(values, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64)


def _aligned(twin: UnitReader, names: tuple[str, ...], double: float) -> torch.Tensor:
    """Return the shares of the twin at the same layers; NaN where it has none."""
    twin.finish()
    null = torch.full((len(names), len(SERIES)), torch.nan, dtype=torch.float64)
    known = [place for place, name in enumerate(names) if name in twin.units]
    if known:
        null[known] = _shares([twin.units[names[place]] for place in known], double)[0]
    return null


def _warn(names: tuple[str, ...], values: torch.Tensor, count: int, left_out: dict[str, str], explicit: bool) -> None:
    """Warn of what would mislead."""
    warn_unread("health", left_out, explicit)
    if count < ENOUGH:
        bound = 1 - 0.05 ** (1 / count)
        warn(
            f"health: over {count} samples a unit that answers to {bound:.0%} of inputs may be called dead; give more.",
        )
    if infinite := [name for name, share in zip(names, values[:, 4].tolist(), strict=True) if share]:
        warn(f"health: {listed(infinite)} holds values that are not finite.")
