"""Where training and test samples part: the gap of a linear readout between them, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.features.feature_batches import Source, Table, worth_telling
from layerlens.analyzers.common.features.layer_features import Pool, Rows
from layerlens.analyzers.common.messages import warn_left_out
from layerlens.errors import InputError, check_count, warn
from layerlens.inputs.batches import Batch
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import LayerProfile
from layerlens.targets.outputs import main_output

from .linear_probe import known_labels, rows_of
from .linear_readout import Labels, Readout, as_labels, folds_of

ANSWER = "(answer)"
"""Name of the rows that hold the model's own class."""

LEVEL = 0.05


def generalization_gap(
    model: nn.Module,
    train: Any,
    test: Any,
    layers: Selection = None,
    *,
    train_labels: Any = None,
    test_labels: Any = None,
    pool: Pool | Callable[[torch.Tensor], torch.Tensor] = "mean",
    penalty: float = 1.0,
    permutations: int = 1000,
    most: int = 2000,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Callable[[Any], Inputs] = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    """How much better the label can be read, in each layer, from samples that the model was trained on.

    A linear readout is fitted to one half of the training samples, and tested on the other half and on the test
    samples; then the halves change places. Neither the other half nor the test samples were seen by the readout, so
    the gap between them, right answers on training samples less those on test samples, is the model's doing: it is
    where the layer has made samples easy because it was trained on them. A model that generalises has gaps near zero
    in all layers; one that memorised labels opens the gap in the layers that hold them, and not in those before.

    The null: samples are what they are, but which of them count as training samples is put in random order; the gap
    that 95 % of the orders stay below. Cost: F for each sample, and two fits per layer.

    Args:
        model: any module; it is run in eval mode.
        train: samples that the model was trained on, see `layerlens.inputs.batches`.
        test: samples of the same kind that it was not trained on.
        layers: which layers, see `Selection`; None for every distinct activation.
        train_labels: of `train`, as the model was trained on them (also if they are wrong); None takes those in it.
        test_labels: of `test`.
        pool: how a layer becomes a row, as in `linear_probe`.
        penalty: inverse strength C of the logistic regression's penalty, for features of unit variance.
        permutations: for the null and p.
        most: how many samples of each set are kept, drawn at random.
        batch_size: samples that run together.
        batched: whether the items of an iterable are batches; None: those of a DataLoader are.
        read: makes model inputs of a batch, or of one text.
        seed: of samples, halves, permutations and projection.
        progress: whether to show a bar; None shows it in a terminal.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `LayerProfile` of gaps, with their standard error over samples and the null. Its checks are `"train"` and
        `"test"`, the readout's right answers, and `"p"`, each `(layers,)`; and, where the output is one score for each
        of the labels' classes, `"model"`: the model's own right answers on both, `(2,)`.

    Raises:
        InputError: when labels are missing, not one per sample, or not of the same kind in both sets.
        LayerNotFound: when the selection matches no layer.
        MissingPackage: when scikit-learn is not installed.
        OptionError: when an option is out of range.

    Warns:
        UserWarning: for layers left out, and when a fit does not converge.

    Example:
        >>> x, y = torch.randn(120, 5), torch.arange(120) % 2
        >>> net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = generalization_gap(net, x[:60], x[60:], train_labels=y[:60], test_labels=y[60:])
        >>> found.layers  # never trained, so no gap
        ('(input)', '0', '1', '2')
    """
    check_count("permutations", permutations)
    check_count("most", most)
    readout = Readout(penalty, seed)
    sides = []
    for name, data in (("train", train), ("test", test)):
        source = Source(data, batch_size, batched, read, progress, f"reading layers ({name})")
        sides.append(rows_of(model, source, layers, pool, forward, most, seed, more=_answers))
    own, other = sides
    truth = known_labels(train_labels, own, "generalization_gap (train)")
    asked = _of_the_same(test_labels, other, truth)
    halves = folds_of(truth, 2, seed)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack(
        [torch.randperm(len(own.index) + len(other.index), generator=generator) for _ in range(permutations)]
    )
    names = [name for name in own.layers if name in other.layers and name != ANSWER]
    found = []
    for name in track(names, "generalization gap", enabled=progress):
        first, second = (readout.projected(side.layers[name]) for side in sides)
        found.append(_one(first, second, truth, asked, halves, orders, readout))
    left_out = own.left_out | other.left_out
    warn_left_out("generalization_gap", worth_telling(left_out, layers is not None), layers is not None)
    if readout.unfinished:
        warn(f"generalization_gap: {readout.unfinished} fit(s) did not converge; a smaller penalty= helps.")
    gap, error, null, p, seen, unseen = (torch.stack(parts) for parts in zip(*found, strict=True))
    checks = {"train": seen, "test": unseen, "p": p}
    score = "right answers" if truth.kind == "classes" else "R2"
    if truth.kind == "classes" and ANSWER in own.layers and ANSWER in other.layers:
        answers = [_right(side.layers[ANSWER], labels) for side, labels in ((own, truth), (other, asked))]
        if all(answer is not None for answer in answers):
            checks["model"] = torch.stack([answer for answer in answers if answer is not None])
    return LayerProfile(
        quantity=f"{score} on training less on test samples",
        layers=tuple(names),
        values=gap,
        units="share of samples" if truth.kind == "classes" else "1",
        signed=True,
        method=f"linear readout, {len(own.index)} training and {len(other.index)} test samples",
        settings={
            "pool": pool if isinstance(pool, str) else getattr(pool, "__name__", type(pool).__name__),
            "penalty": penalty,
            "permutations": permutations,
            "most": most,
            "seed": seed,
            "left_out": left_out,
        },
        error=error,
        null=null,
        checks=checks,
        explanation=(
            "Each value is how much better a linear readout, fitted to other training samples, tells the label of "
            "training samples than of test samples from that layer: above the null, the layer fits the training set.",
            "It is about these two sets: where they differ in more than training, such as their source or their "
            "share of hard samples, the gap has other reasons too.",
        ),
    )


def _answers(batch: Batch, rows: Rows) -> dict[str, torch.Tensor]:
    """The model's own class of each sample, where its output is one score for each class."""
    try:
        output = main_output(rows.output)
    except ValueError:
        return {}
    if output.ndim != 2 or len(output) != rows.batch or output.shape[1] < 2:
        return {}
    return {ANSWER: output.detach().argmax(dim=1, keepdim=True).double().cpu()}


def _right(answers: torch.Tensor, labels: Labels) -> torch.Tensor | None:
    """The share of right answers; None where the labels are no class indices."""
    if not all(name.isdigit() for name in labels.names):
        return None
    classes = torch.tensor([int(name) for name in labels.names])[labels.values]
    return (answers.squeeze(1) == classes).double().mean()


def _of_the_same(given: Any, table: Table, truth: Labels) -> Labels:
    """The labels of the test samples, by the numbers of the training labels.

    Raises:
        InputError: when they are missing, or of another kind or of classes that the training set does not have.
    """
    if given is None and table.labels is None:
        raise InputError("generalization_gap: no labels of the test samples: give test_labels=, one per sample.")
    labels = known_labels_of(given, table)
    if labels.kind != truth.kind:
        raise InputError(f"generalization_gap: the labels are {truth.kind} in train and {labels.kind} in test.")
    if labels.kind == "numbers":
        return labels
    unknown = [name for name in labels.names if name not in truth.names]
    if unknown:
        raise InputError(f"generalization_gap: no training sample has the label {unknown[0]!r} of the test samples.")
    place = torch.tensor([truth.names.index(name) for name in labels.names])
    return Labels(place[labels.values], "classes", truth.names)


def known_labels_of(given: Any, table: Table) -> Labels:
    """The labels of test samples, of which a class may have one alone."""
    if given is None:
        return as_labels(table.labels, len(table.index), "generalization_gap (test)")
    return as_labels(given, table.count, "generalization_gap (test)").take(table.index)


def _one(
    first: torch.Tensor,
    second: torch.Tensor,
    truth: Labels,
    asked: Labels,
    halves: torch.Tensor,
    orders: torch.Tensor,
    readout: Readout,
) -> tuple[torch.Tensor, ...]:
    """Gap, error, null, p, and the scores on both sets, of one layer."""
    rows = torch.cat([first.double(), second.double()])
    labels = Labels(torch.cat([truth.values, asked.values]), truth.kind, truth.names)
    count = len(first)
    outside = torch.arange(count, len(rows))
    seen = torch.empty(count, dtype=torch.float64)
    unseen = torch.zeros(len(outside), dtype=torch.float64)
    for half in (0, 1):
        fitted, tested = (halves == half).nonzero().squeeze(1), (halves != half).nonzero().squeeze(1)
        scores = readout.scores(rows, labels, fitted, torch.cat([tested, outside]), labels)
        seen[tested] = scores[: len(tested)]
        unseen += scores[len(tested) :] / 2
    whole = torch.cat([seen, unseen])
    shuffled = whole[orders]
    chance = shuffled[:, :count].mean(dim=1) - shuffled[:, count:].mean(dim=1)
    gap = seen.mean() - unseen.mean()
    error = (seen.var() / len(seen) + unseen.var() / len(unseen)).sqrt()
    p = (1 + (chance >= gap - 1e-12).sum()).double() / (len(chance) + 1)
    return gap, error, chance.quantile(1 - LEVEL), p, seen.mean(), unseen.mean()
