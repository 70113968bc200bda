"""Linear probes: what a linear readout can tell of a label from each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.features.feature_batches import Source, Table, gather, read_again, worth_telling
from layerlens.analyzers.common.features.layer_features import FeatureReader, Pool, Rows
from layerlens.analyzers.common.messages import listed, warn_left_out
from layerlens.analyzers.common.null_model import shuffled
from layerlens.errors import InputError, OptionError, check_count, warn
from layerlens.inputs.batches import Batch, Samples
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import LayerProfile

from .linear_readout import FEWEST, FOLDS, Labels, Readout, as_labels, folds_of, inputs_as_rows, mean_and_error

INPUT = "(input)"
"""Name of the row that is read from the inputs themselves."""

SMALL = 64


def linear_probe(
    model: nn.Module,
    data: Samples,
    labels: Any = None,
    layers: Selection = None,
    *,
    untrained: nn.Module | bool = True,
    pool: Pool | Callable[[torch.Tensor], torch.Tensor] = "mean",
    penalty: float = 1.0,
    shuffles: int = 2,
    most: int = 2000,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Callable[[Any], Inputs] = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    """How much a linear readout can tell of a label from each layer, on samples that it was not fitted to.

    From the rows of a layer a logistic regression, in five folds, predicts each held-out sample's class; the value is
    the share of right answers (Alain & Bengio 2016). For labels that are floating-point numbers a ridge regression
    takes its place, and the value is R2. Beside the model stand

    - the inputs themselves, as the first row `"(input)"`, where they are numbers: what needs no model;
    - an untrained twin: what the architecture alone makes easier, which is often a lot;
    - shuffled labels, as the null: chance, and what the readout can memorise (Hewitt & Liang 2019 on controls).

    The data is read once per model. Cost: F for each sample, 2 F with an untrained twin, and five fits per layer, twin
    and shuffle.

    Args:
        model: any module; it is run in eval mode.
        data: samples, see `layerlens.inputs.batches`; with an untrained twin they are read twice.
        labels: one per sample: whole numbers, names or booleans are classes, floating-point numbers are numbers. None
            takes those in the data.
        layers: which layers, see `Selection`; None for every distinct activation.
        untrained: True takes the model with the entries of each parameter in random order (buffers stay), False none,
            and a module is your own.
        pool: how a layer becomes a row: `"mean"` takes each unit's mean over places, `"last"` its last place,
            `"flatten"` all numbers, or a function from `(batch, units, *places)` to `(batch, features)`. Rows of more
            than 1024 numbers are projected to as many random directions.
        penalty: inverse strength C of the logistic regression's penalty, for features of unit variance.
        shuffles: how often the labels are shuffled for the null; 0 for none.
        most: how many samples are kept, drawn at random.
        batch_size: samples that run together.
        batched: whether the items of an iterable are batches; None: those of a DataLoader are.
        read: makes model inputs of a batch, or of one text.
        seed: of samples, folds, shuffles, twin and projection.
        progress: whether to show a bar; None shows it in a terminal.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `LayerProfile` with the series `"trained"` and, with a twin, `"untrained"`. The error is the standard error
        over samples, the null the mean over shuffled labels. Its checks are `"always the same answer"`, the share of
        the largest class (0 for numbers), and `"samples"`.

    Raises:
        InputError: when labels are missing or not one per sample, or a class has fewer than two samples.
        LayerNotFound: when the selection matches no layer.
        MissingPackage: when scikit-learn is not installed.
        OptionError: when an option is out of range.

    Warns:
        UserWarning: for fewer than 64 samples, for layers with more features than samples, when a fit does not
            converge, and for layers left out.

    Example:
        >>> x = torch.randn(80, 6)
        >>> found = linear_probe(nn.Sequential(nn.Linear(6, 12), nn.ReLU()), x, x[:, 0] > 0, shuffles=1)
        >>> found.layers, found.series, bool(found.values[0, 0] > 0.9)
        (('(input)', '0', '1'), ('trained', 'untrained'), True)
    """
    check_count("most", most)
    if isinstance(shuffles, bool) or not isinstance(shuffles, int) or shuffles < 0:
        raise OptionError(f"shuffles must be a whole number of at least 0, got {shuffles!r}.")
    if not isinstance(penalty, (int, float)) or not penalty > 0:
        raise OptionError(f"penalty must be a number above 0, got {penalty!r}.")
    if untrained is not False:
        read_again(data, 2, "linear_probe")
    readout = Readout(penalty, seed)
    source = Source(data, batch_size, batched, read, progress, "reading layers")
    table = rows_of(model, source, layers, pool, forward, most, seed)
    truth = known_labels(labels, table, "linear_probe")
    twins = {"trained": table.layers}
    if untrained is not False:
        if untrained is True:
            other = rows_of(model, source, list(_paths(table)), pool, shuffled(model, forward, seed), most, seed)
        else:
            other = rows_of(untrained, source, layers, pool, forward, most, seed)
        if other.count != table.count:
            raise InputError(f"linear_probe: the data had {table.count} samples, and {other.count} when read again.")
        twins["untrained"] = other.layers
    folds = folds_of(truth, min(FOLDS, _smallest(truth)), seed)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(folds), generator=generator) for _ in range(shuffles)]
    names = tuple(table.layers)
    shape = (len(names), len(twins))
    values, error, null = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(3))
    jobs = [(row, column) for row in range(shape[0]) for column in range(shape[1])]
    for row, column in track(jobs, "linear probes", enabled=progress):
        rows = list(twins.values())[column].get(names[row])
        if rows is None:
            continue
        rows = readout.projected(rows)
        values[row, column], error[row, column] = mean_and_error(readout.held_out(rows, truth, folds))
        if shuffles:
            chance = [readout.held_out(rows, truth.take(order), folds).mean() for order in orders]
            null[row, column] = torch.stack(chance).mean()
    _warn(table, len(folds), readout, layers is not None)
    several = len(twins) > 1
    what = "classes" if truth.kind == "classes" else "numbers"
    return LayerProfile(
        quantity="right answers of a linear readout" if truth.kind == "classes" else "R2 of a linear readout",
        layers=names,
        values=values if several else values[:, 0],
        units="share of samples" if truth.kind == "classes" else "1",
        signed=False,
        method=f"linear probe of {what}, {len(folds)} samples, {len(set(folds.tolist()))} folds",
        settings={
            "pool": pool if isinstance(pool, str) else getattr(pool, "__name__", type(pool).__name__),
            "penalty": penalty,
            "shuffles": shuffles,
            "most": most,
            "classes": truth.names,
            "untrained": untrained if isinstance(untrained, bool) else type(untrained).__name__,
            "seed": seed,
            "left_out": table.left_out,
        },
        series=tuple(twins) if several else (),
        error=error if several else error[:, 0],
        null=None if not shuffles else null if several else null[:, 0],
        checks={
            "always the same answer": torch.tensor(truth.chance),
            "samples": torch.tensor(len(folds)),
        },
        explanation=(
            "Each value is how well a linear readout, fitted to other samples, tells the label from that layer alone; "
            "what it adds to the input's row and to the untrained twin is the work of training.",
            "That a label can be read does not say that the model uses it: ask question='matters_to_output' for that.",
        ),
    )


def rows_of(
    model: nn.Module,
    source: Source,
    layers: Selection,
    pool: Pool | Callable[[torch.Tensor], torch.Tensor],
    forward: Forward | None,
    most: int,
    seed: int,
    *,
    more: Callable[[Batch, Rows], dict[str, torch.Tensor]] | None = None,
) -> Table:
    """The rows of every layer, and of the inputs where they are numbers; see `gather`."""

    def extra(batch: Batch, rows: Rows) -> dict[str, torch.Tensor]:
        own = inputs_as_rows(batch.inputs.floating(), rows.batch)
        return ({} if own is None else {INPUT: own}) | ({} if more is None else more(batch, rows))

    def reader(chosen: Selection) -> FeatureReader:
        return FeatureReader(model, chosen, pool=pool, forward=forward)

    return gather(reader, layers, source, most, seed, more=extra)


def known_labels(labels: Any, table: Table, what: str) -> Labels:
    """The labels of the samples of a table.

    Raises:
        InputError: when there are none, or they do not fit, or a class has too few samples.
    """
    if labels is None:
        if table.labels is None:
            raise InputError(f"{what}: no labels: give labels=, one per sample, or data of pairs (x, label).")
        found = as_labels(table.labels, len(table.index), what)
    else:
        found = as_labels(labels, table.count, what).take(table.index)
    if found.kind == "classes":
        counts = found.values.bincount(minlength=len(found.names))
        if int(counts.min()) < FEWEST:
            few = found.names[int(counts.argmin())]
            raise InputError(f"{what}: class {few!r} has {int(counts.min())} sample(s); {FEWEST} are needed to test.")
    elif len(found.values) < FEWEST * 2:
        raise InputError(f"{what}: {len(found.values)} samples are too few to fit and to test.")
    return found


def _smallest(labels: Labels) -> int:
    return int(labels.values.bincount().min()) if labels.kind == "classes" else len(labels.values)


def _paths(table: Table) -> dict[str, None]:
    return dict.fromkeys(name.split(" #")[0] for name in table.layers if name != INPUT)


def _warn(table: Table, samples: int, readout: Readout, explicit: bool) -> None:
    """Say what would mislead."""
    warn_left_out("linear_probe", worth_telling(table.left_out, explicit), explicit)
    if samples < SMALL:
        warn(f"linear_probe: {samples} samples are few; read the values with their errors and the null.")
    wide = [name for name, rows in table.layers.items() if rows.shape[1] > samples and name != INPUT]
    if wide:
        warn(
            f"linear_probe: {listed(wide)} has more features than the {samples} samples: the penalty, and not the "
            "layer, may decide; give more samples, or fewer features by pool=.",
        )
    if readout.unfinished:
        warn(f"linear_probe: {readout.unfinished} fit(s) did not converge; a smaller penalty= helps.")
