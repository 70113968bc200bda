"""What spoiled weights do to the output, the loss or the accuracy: one layer at a time, by running the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.null_model import with_parameters
from layerlens.errors import InputError, LayerNotFound, OptionError, choose
from layerlens.inputs.inputs import Forward
from layerlens.progress import track
from layerlens.results import LayerProfile
from layerlens.targets.target import Spec

from ..output_metrics import QUANTITIES, readout
from .labeled_batches import Piece, Samples
from .likelihood import Kind, likelihood
from .prune_and_quantize import Block, Damage, pruning, quantization, weight_names
from .weight_task import Job, Owners

Metric = Literal["auto", "loss", "accuracy", "kl", "flip", "relative_change", "change"]
METRICS = ("auto", "loss", "accuracy", *QUANTITIES)


@dataclasses.dataclass
class Measured:
    """Means over samples; float64.

    Attributes:
        rows: with a value.
        values: `(rows, levels)`.
        error: standard errors over samples, None for one sample.
        null: of random damage, None when not asked for.
        clean: the mean loss or accuracy of the model as it is; None for other metrics.
        count: of samples.
        metric: as used.
        words: what is read.
        left_out: row -> why it has no value.
    """

    rows: list[str]
    values: torch.Tensor
    error: torch.Tensor | None
    null: torch.Tensor | None
    clean: torch.Tensor | None
    count: int
    metric: str
    words: str
    left_out: dict[str, str]


def measured(
    model: nn.Module,
    samples: Samples,
    owners: Owners,
    damage: Damage,
    *,
    metric: Metric,
    target: Spec,
    kind: Kind,
    null: bool,
    draws: int,
    seed: int,
    progress: bool | None,
    forward: Forward | None,
) -> Measured:
    """Run every sample with each row spoiled at each level; the spoiled tensors are copies that are lent to the model.

    Raises:
        InputError: when the metric needs labels and there are none.
        LayerNotFound: when no row holds weights.
        OptionError: when the metric is unknown or does not fit.
    """
    choose("metric", metric, METRICS)
    if target is not None and metric in ("loss", "accuracy"):
        raise OptionError(f"metric {metric!r} reads the whole output; a target is one score: metric='change'.")
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    blocks, left_out = _blocks(owners, parameters)
    levels = len(damage.series)
    sums, squares = torch.zeros(2, len(blocks), levels, dtype=torch.float64)
    chance = torch.zeros(len(blocks), levels, dtype=torch.float64)
    clean, count, read = torch.zeros((), dtype=torch.float64), 0, None
    for piece in samples("weights", False):
        run = _Run(model, forward, piece, seed)
        output = run({})
        if read is None:
            read = _reader(metric, target, kind, output, piece)
        before = read(output, piece)
        clean += before.level.sum()
        doing = f"weights, samples from {piece.start}"
        for row, block in enumerate(track(blocks.values(), doing, enabled=progress)):
            for level in range(levels):
                change = read.change(before, read(run(damage.apply(block, level)), piece))
                sums[row, level] += change.sum()
                squares[row, level] += change.square().sum()
                for draw in range(draws if null else 0):
                    generator = torch.Generator().manual_seed(seed + 7919 * draw + 104729 * row)
                    spoiled = read(run(damage.chance(block, level, generator)), piece)
                    chance[row, level] += read.change(before, spoiled).sum() / draws
        count += piece.inputs.batch
    assert read is not None
    mean = sums / count
    spread = (squares / count - mean.square()).clamp_min(0) * count / max(1, count - 1)
    return Measured(
        list(blocks),
        mean,
        (spread / count).sqrt() if count > 1 else None,
        chance / count if null else None,
        clean / count if read.metric in ("loss", "accuracy") else None,
        count,
        read.metric,
        read.words,
        left_out,
    )


def _blocks(owners: Owners, parameters: Mapping[str, torch.Tensor]) -> tuple[dict[str, Block], dict[str, str]]:
    blocks, left_out = {}, {}
    for row, names in owners.rows.items():
        weights = weight_names(names, parameters)
        if any(_is_reparametrized(name, parameters) for name in weights):
            left_out[row] = "its weight is computed from other parameters; fix it first: remove_parametrizations"
        elif weights:
            blocks[row] = {name: parameters[name] for name in weights}
        else:
            left_out[row] = "it holds no weights, only biases or scales with one axis"
    if not blocks:
        reasons = "; ".join(f"{row}: {why}" for row, why in list(left_out.items())[:3])
        raise LayerNotFound(f"none of the selected layers holds weights that can be spoiled. {reasons}")
    return blocks, left_out


def _is_reparametrized(name: str, parameters: Mapping[str, torch.Tensor]) -> bool:
    """Whether a parameter is what `torch.nn.utils.parametrize`, or the older weight norm, computes a weight from."""
    return ".parametrizations." in f".{name}" or {f"{name[:-2]}_g", f"{name[:-2]}_v"} <= parameters.keys()


@dataclasses.dataclass(frozen=True)
class _Run:
    model: nn.Module
    forward: Forward | None
    piece: Piece
    seed: int

    def __call__(self, parameters: Block) -> Any:
        torch.manual_seed(self.seed)
        return self.piece.inputs.run(self.model, with_parameters(self.model, self.forward, parameters))


@dataclasses.dataclass(frozen=True)
class _Level:
    """What was read of an output: what a `Readout` compares, or a number for each sample."""

    output: torch.Tensor
    level: torch.Tensor


@dataclasses.dataclass(frozen=True)
class _Reader:
    metric: str
    words: str
    read: Callable[[Any, Piece], _Level]
    change: Callable[[_Level, _Level], torch.Tensor]

    def __call__(self, output: Any, piece: Piece) -> _Level:
        return self.read(output, piece)


def _reader(metric: Metric, target: Spec, kind: Kind, output: Any, piece: Piece) -> _Reader:
    batch = piece.inputs.batch
    if metric == "auto" and piece.labels is not None and target is None:
        metric = "loss"
    if metric in ("loss", "accuracy"):
        if piece.labels is None:
            raise InputError(f"metric {metric!r} needs labels=, one for each sample.")
        own = likelihood(kind, output, batch)

        def scored(output: Any, piece: Piece) -> _Level:
            y = own.read(output).double()
            assert piece.labels is not None
            score = own.losses if metric == "loss" else own.hits
            values = score(y, piece.labels, own.weights(y, piece.inputs, piece.labels)).cpu()
            return _Level(values, values)

        sign = 1.0 if metric == "loss" else -1.0
        what = f"{own.kind} loss" if metric == "loss" else "accuracy"
        return _Reader(metric, what, scored, lambda before, after: sign * (after.level - before.level))
    found = readout(metric, target, output, batch)  # type: ignore[arg-type]  # loss and accuracy are done

    def compared(output: Any, piece: Piece) -> _Level:
        rows = torch.arange(piece.inputs.batch) + (0 if target is None else piece.start)
        values = found(output, rows)
        return _Level(values, torch.zeros(len(values), dtype=torch.float64))

    return _Reader(found.metric, found.words, compared, lambda before, after: found.change(before.output, after.output))


def by_damage(
    job: Job, measure: str, levels: Any, how: Any, *, metric: Metric, target: Spec, draws: int
) -> LayerProfile:
    """The change of loss, accuracy or output with spoiled weights."""
    damage = pruning(job.model, levels, how) if measure == "pruning" else quantization(job.model, levels, how)
    found = measured(
        job.model,
        job.samples,
        job.owners,
        damage,
        metric=metric,
        target=target,
        kind=job.likelihood,
        null=job.null,
        draws=draws,
        seed=job.seed,
        progress=job.progress,
        forward=job.forward,
    )
    after = "pruning" if measure == "pruning" else "rounding"
    kinds = {
        "loss": (f"rise of the loss after {after}", "loss"),
        "accuracy": (f"drop of the accuracy after {after}", "share of samples"),
    }
    quantity, units = kinds.get(found.metric) or (
        QUANTITIES[found.metric][0].replace("under noise", f"after {after}"),
        QUANTITIES[found.metric][1],
    )
    checks = {"parameters": job.counts[[list(job.owners.rows).index(row) for row in found.rows]]}
    if found.clean is not None:
        checks["clean"] = found.clean
    settings = job.settings(
        measure=measure,
        levels=levels,
        metric=found.metric,
        samples=found.count,
        draws=draws if job.null else None,
        **({"structured": how} if measure == "pruning" else {"granularity": how}),
    )
    settings["left_out"] |= found.left_out
    return LayerProfile(
        quantity=quantity,
        layers=tuple(found.rows),
        values=found.values,
        units=units,
        signed=found.metric in ("loss", "accuracy"),
        method=f"{damage.words}, {found.words}, {found.count} samples{job.told}",
        settings=settings,
        series=damage.series,
        error=found.error,
        null=found.null,
        checks=checks,
        explanation=(
            f"Each value is the {quantity}, as measured with {damage.words}; null, where asked for, is the same amount "
            "of damage at random places.",
            "It holds for one layer at a time with the others intact and without training afterwards, on these "
            "samples; damage to several layers does not add up.",
        ),
    )
