"""Where training and test samples differ: the gap of a linear readout between them, layer by layer."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.features.feature_batches import warn_unread
from layerlens.analyzers.common.features.layer_features import Pool, Rows, pool_name
from layerlens.errors import InputError, check_count, warn
from layerlens.inputs.batches import Batch, Data, Labels, Read, Samples
from layerlens.inputs.inputs import Forward, as_inputs
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import LayerProfile
from layerlens.signatures import public
from layerlens.targets.outputs import main_output

from .linear_probe import layer_rows
from .linear_readout import Readout, Truth, as_truth, split_folds, true_labels

ANSWER = "(answer)"
"""Name of the rows that hold the model's own class."""

LEVEL = 0.05


@public(renamed={"most": "max_samples"})
def generalization_gap(
    model: nn.Module,
    train: Samples,
    test: Samples,
    layers: Selection = None,
    *,
    train_labels: Labels | None = None,
    test_labels: Labels | None = None,
    pool: Pool = "mean",
    penalty: float = 1.0,
    permutations: int = 1000,
    max_samples: int = 2000,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Read = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    """Measure in each layer how much better a label is read from samples that the model was trained on.

    A linear readout is fitted to one half of the training samples, and tested on the other half and on the test
    samples; then the halves change places. The readout saw neither the other half nor the test samples, so the gap
    between them, right answers on training samples less those on test samples, is due to the model: it is where the
    layer has made samples easy because it was trained on them. A model that generalizes has gaps near zero in all
    layers; one that memorized labels opens the gap in the layers that hold them, and not in those before.

    The null: which samples count as training samples is put in random order; the gap that 95 % of the orders stay
    below. Cost: F for each sample, and two fits per layer.

    Args:
        train: samples that the model was trained on, see `Data`.
        test: samples of the same kind that it was not trained on.
        layers: which layers, see `Selection`; None for every layer but those that return another's output.
        train_labels: labels of `train`, as the model was trained on them (also if wrong); None takes those in it.
        test_labels: labels of `test`; None takes those in it.
        max_samples: number of samples of each set kept, drawn at random.

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
    check_count("max_samples", max_samples)
    readout = Readout(penalty, seed)
    sides = []
    for name, samples, labels in (("train", train, train_labels), ("test", test, test_labels)):
        data = Data.of(samples, labels, batch_size=batch_size, batched=batched, read=read, progress=progress)
        what = f"generalization_gap ({name})"
        sides.append(layer_rows(model, data, layers, forward, pool, max_samples, seed, what, more=_answers))
    own, other = sides
    truth = true_labels(own.labels, "generalization_gap (train)")
    test_truth = _in_classes_of(truth, other.labels)
    halves = split_folds(truth, 2, seed)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack(
        [torch.randperm(len(own.index) + len(other.index), generator=generator) for _ in range(permutations)]
    )
    names = [name for name in own.layers if name in other.layers and name != ANSWER]
    gaps = []
    for name in track(names, "generalization gap", enabled=progress):
        first, second = (readout.projected(side.layers[name]) for side in sides)
        gaps.append(_gap(first, second, truth, test_truth, halves, orders, readout))
    left_out = own.left_out | other.left_out
    warn_unread("generalization_gap", left_out, layers is not None)
    if readout.unfinished:
        warn(f"generalization_gap: {readout.unfinished} fit(s) did not converge; a smaller penalty= helps.")
    gap, error, null, p, seen, unseen = (torch.stack(parts) for parts in zip(*gaps, strict=True))
    checks = {"train": seen, "test": unseen, "p": p}
    classes = truth.kind == "classes"
    if classes and ANSWER in own.layers and ANSWER in other.layers and all(name.isdigit() for name in truth.names):
        answers = (own.layers[ANSWER], truth), (other.layers[ANSWER], test_truth)
        checks["model"] = torch.stack([_right_answers(answer, labels) for answer, labels in answers])
    return LayerProfile(
        quantity=f"{'right answers' if classes else 'R2'} on training less on test samples",
        layers=tuple(names),
        values=gap,
        units="share of samples" if classes else "1",
        signed=True,
        method=f"linear readout, {len(own.index)} training and {len(other.index)} test samples",
        settings={
            "pool": pool_name(pool),
            "penalty": penalty,
            "permutations": permutations,
            "max_samples": max_samples,
            "seed": seed,
            "left_out": left_out,
        },
        error=error,
        null=null,
        checks=checks,
        explanation=(
            "Each value is how much better a linear readout, fitted to other training samples, predicts the label of "
            "training samples than of test samples from that layer: above the null, the layer fits the training set.",
            "It is about these two sets: where they differ in more than training, such as their source or their "
            "share of hard samples, the gap has other reasons too.",
        ),
    )


def _answers(batch: Batch, rows: Rows) -> dict[str, torch.Tensor]:
    """Return the model's own class of each sample, where its output is one score for each class."""
    try:
        output = main_output(rows.output)
    except ValueError:
        return {}
    if output.ndim != 2 or len(output) != rows.batch or output.shape[1] < 2:
        return {}
    return {ANSWER: output.detach().argmax(dim=1, keepdim=True).double().cpu()}


def _right_answers(answers: torch.Tensor, truth: Truth) -> torch.Tensor:
    """Return the share of right answers; the names of the classes are their indices."""
    classes = torch.tensor([int(name) for name in truth.names])[truth.values]
    return (answers.squeeze(1) == classes).double().mean()


def _in_classes_of(train: Truth, labels: list[object] | None) -> Truth:
    """Read the labels of the test samples, by the numbers of the training labels.

    Raises:
        InputError: when they are missing, of another kind, or of classes that the training set does not have.
    """
    if labels is None:
        raise InputError("generalization_gap: no labels of the test samples: give test_labels=, one per sample.")
    test = as_truth(labels, "generalization_gap (test)")
    if test.kind != train.kind:
        raise InputError(f"generalization_gap: the labels are {train.kind} in train and {test.kind} in test.")
    if test.kind == "numbers":
        return test
    unknown = [name for name in test.names if name not in train.names]
    if unknown:
        raise InputError(f"generalization_gap: no training sample has the label {unknown[0]!r} of the test samples.")
    place = torch.tensor([train.names.index(name) for name in test.names])
    return Truth(place[test.values], "classes", train.names)


def _gap(
    first: torch.Tensor,
    second: torch.Tensor,
    train: Truth,
    test: Truth,
    halves: torch.Tensor,
    orders: torch.Tensor,
    readout: Readout,
) -> tuple[torch.Tensor, ...]:
    """Return gap, error, null, p, and the scores on both sets, of one layer."""
    rows = torch.cat([first.double(), second.double()])
    truth = Truth(torch.cat([train.values, test.values]), train.kind, train.names)
    count = len(first)
    outside = torch.arange(count, len(rows))
    seen = torch.empty(count, dtype=torch.float64)
    unseen = torch.zeros(len(outside), dtype=torch.float64)
    for half in (0, 1):
        fitted, tested = (halves == half).nonzero().squeeze(1), (halves != half).nonzero().squeeze(1)
        scores = readout.scores(rows, truth, fitted, torch.cat([tested, outside]))
        seen[tested] = scores[: len(tested)]
        unseen += scores[len(tested) :] / 2
    shuffled = torch.cat([seen, unseen])[orders]
    chance = shuffled[:, :count].mean(dim=1) - shuffled[:, count:].mean(dim=1)
    gap = seen.mean() - unseen.mean()
    error = (seen.var() / len(seen) + unseen.var() / len(unseen)).sqrt()
    p = (1 + (chance >= gap - 1e-12).sum()).double() / (len(chance) + 1)
    return gap, error, chance.quantile(1 - LEVEL), p, seen.mean(), unseen.mean()
