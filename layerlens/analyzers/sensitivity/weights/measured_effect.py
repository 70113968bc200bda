"""How pruned or rounded weights change the output, the loss or the accuracy, one layer at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from layerlens.analyzers.common.null_model import with_parameters
from layerlens.errors import InputError, LayerNotFound, OptionError, choose
from layerlens.model.borrowed import seed_torch
from layerlens.progress import track
from layerlens.results import LayerProfile
from layerlens.targets.target import Spec, as_target

from ..output_metrics import QUANTITIES, choose_readout
from .labeled_batches import Piece
from .likelihood import Kind, choose_likelihood
from .prune_and_quantize import Block, WeightPerturbation, weight_names
from .weight_task import ParameterOwners, WeightTask

Metric = Literal["auto", "loss", "accuracy", "kl", "flip", "relative_change", "change"]
METRICS = ("auto", "loss", "accuracy", *QUANTITIES)


@dataclasses.dataclass
class MeasuredEffect:
    """Means over samples, float64.

    Attributes:
        rows: rows with a value.
        values: `(rows, levels)`.
        error: standard errors over samples, None for one sample.
        null: values of random changes of the same size, or None.
        clean: mean loss or accuracy of the unchanged model; None for other metrics.
        count: number of samples.
        metric: the metric used.
        text: description of what is read.
        left_out: row -> why it has no value.
    """

    rows: list[str]
    values: torch.Tensor
    error: torch.Tensor | None
    null: torch.Tensor | None
    clean: torch.Tensor | None
    count: int
    metric: str
    text: str
    left_out: dict[str, str]


def measure_effect(
    task: WeightTask, perturbation: WeightPerturbation, metric: Metric, target: Spec, draws: int
) -> MeasuredEffect:
    """Run every sample with the weights of each row changed at each level; the model runs on changed copies.

    Raises:
        InputError: when the metric needs labels and there are none.
        LayerNotFound: when no row holds weights.
        OptionError: when the metric is unknown or does not fit.
    """
    choose("metric", metric, METRICS)
    if target is not None and metric in ("loss", "accuracy"):
        raise OptionError(f"metric {metric!r} reads the whole output; a target is one score: metric='change'.")
    parameters = {name: tensor.detach() for name, tensor in task.model.named_parameters()}
    blocks, left_out = _weight_blocks(task.owners, parameters)
    levels = len(perturbation.series)
    sums, squares = torch.zeros(2, len(blocks), levels, dtype=torch.float64)
    random_sums = torch.zeros(len(blocks), levels, dtype=torch.float64)
    clean, count, read = torch.zeros((), dtype=torch.float64), 0, None
    target = None if target is None else as_target(target)
    for piece in task.samples("weights", False):
        run = _Run(task, piece)
        output = run({})
        read = _choose_reader(metric, target, task.likelihood, output, piece)
        before = read(output, piece)
        clean += before.level.sum()
        doing = f"weights, samples from {piece.start}"
        for row, block in enumerate(track(blocks.values(), doing, enabled=task.progress)):
            for level in range(levels):
                change = read.change(before, read(run(perturbation.apply(block, level)), piece))
                sums[row, level] += change.sum()
                squares[row, level] += change.square().sum()
                for draw in range(draws if task.null else 0):
                    generator = torch.Generator().manual_seed(task.seed + 7919 * draw + 104729 * row)
                    randomized = read(run(perturbation.random(block, level, generator)), piece)
                    random_sums[row, level] += read.change(before, randomized).sum() / draws
        count += piece.inputs.batch
    assert read is not None
    mean = sums / count
    spread = (squares / count - mean.square()).clamp_min(0) * count / max(1, count - 1)
    return MeasuredEffect(
        list(blocks),
        mean,
        (spread / count).sqrt() if count > 1 else None,
        random_sums / count if task.null else None,
        clean / count if read.metric in ("loss", "accuracy") else None,
        count,
        read.metric,
        read.text,
        left_out,
    )


def _weight_blocks(
    owners: ParameterOwners, parameters: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Block], dict[str, str]]:
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
        raise LayerNotFound(f"none of the selected layers holds weights that can be changed. {reasons}")
    return blocks, left_out


def _is_reparametrized(name: str, parameters: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a weight is computed from this parameter by `parametrize` or the older weight norm."""
    return ".parametrizations." in f".{name}" or {f"{name[:-2]}_g", f"{name[:-2]}_v"} <= parameters.keys()


@dataclasses.dataclass(frozen=True)
class _Run:
    """Runs the model on a piece with changed weights."""

    task: WeightTask
    piece: Piece

    def __call__(self, parameters: Block) -> Any:
        model = self.task.model
        seed_torch(self.task.seed)
        return self.piece.inputs.run(model, with_parameters(model, self.task.forward, parameters))


@dataclasses.dataclass(frozen=True)
class _Reading:
    """What was read of an output: the values that a `Readout` compares, or a number for each sample."""

    output: torch.Tensor
    level: torch.Tensor


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads and compares outputs by one metric."""

    metric: str
    text: str
    read: Callable[[Any, Piece], _Reading]
    change: Callable[[_Reading, _Reading], torch.Tensor]

    def __call__(self, output: Any, piece: Piece) -> _Reading:
        return self.read(output, piece)


def _choose_reader(metric: Metric, target: Spec, kind: Kind, output: Any, piece: Piece) -> _Reader:
    batch = piece.inputs.batch
    if metric == "auto" and piece.labels is not None and target is None:
        metric = "loss"
    if metric in ("loss", "accuracy"):
        if piece.labels is None:
            raise InputError(f"metric {metric!r} needs labels=, one for each sample.")
        chosen = choose_likelihood(kind, output, batch)

        def scored(output: Any, piece: Piece) -> _Reading:
            y = chosen.read(output).double()
            assert piece.labels is not None
            score = chosen.losses if metric == "loss" else chosen.accuracy
            values = score(y, piece.labels, chosen.weights(y, piece.inputs, piece.labels)).cpu()
            return _Reading(values, values)

        sign = 1.0 if metric == "loss" else -1.0
        what = f"{chosen.kind} loss" if metric == "loss" else "accuracy"
        return _Reader(metric, what, scored, lambda before, after: sign * (after.level - before.level))
    samples = torch.arange(piece.start, piece.start + batch)
    readout = choose_readout(metric, target, output, piece.inputs, samples)  # type: ignore[arg-type]  # not loss or accuracy

    def compared(output: Any, piece: Piece) -> _Reading:
        values = readout(output, torch.arange(piece.inputs.batch))
        return _Reading(values, torch.zeros(len(values), dtype=torch.float64))

    return _Reader(
        readout.metric, readout.text, compared, lambda before, after: readout.change(before.output, after.output)
    )


def effect_profile(
    task: WeightTask, perturbation: WeightPerturbation, metric: Metric, target: Spec, draws: int
) -> LayerProfile:
    """Return the change of loss, accuracy or output with changed weights."""
    effect = measure_effect(task, perturbation, metric, target, draws)
    after = "pruning" if perturbation.measure == "pruning" else "rounding"
    kinds = {
        "loss": (f"rise of the loss after {after}", "loss"),
        "accuracy": (f"drop of the accuracy after {after}", "share of samples"),
    }
    quantity, units = kinds.get(effect.metric) or (
        QUANTITIES[effect.metric][0].replace("under noise", f"after {after}"),
        QUANTITIES[effect.metric][1],
    )
    checks = {"parameters": task.counts[[list(task.owners.rows).index(row) for row in effect.rows]]}
    if effect.clean is not None:
        checks["clean"] = effect.clean
    settings = task.settings(
        measure=perturbation.measure,
        levels=perturbation.levels,
        metric=effect.metric,
        samples=effect.count,
        draws=draws if task.null else None,
        **perturbation.settings,
    )
    settings["left_out"] |= effect.left_out
    return LayerProfile(
        quantity=quantity,
        layers=tuple(effect.rows),
        values=effect.values,
        units=units,
        signed=effect.metric in ("loss", "accuracy"),
        method=f"{perturbation.text}, {effect.text}, {effect.count} samples{task.shared_note}",
        settings=settings,
        series=perturbation.series,
        error=effect.error,
        null=effect.null,
        checks=checks,
        explanation=(
            f"Each value is the {quantity}, as measured with {perturbation.text}; null, where asked for, is a random "
            "change of the same size.",
            "It holds for one layer at a time with the others intact and without training afterwards, on these "
            "samples; effects of several layers do not add up.",
        ),
    )
