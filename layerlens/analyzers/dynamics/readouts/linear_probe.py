"""Linear probes: how well a linear readout predicts a label from each layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import nn

from layerlens.analyzers.common.features.feature_batches import Table, gather, warn_unread
from layerlens.analyzers.common.features.layer_features import FeatureReader, Pool, Rows, pool_name
from layerlens.analyzers.common.messages import listed
from layerlens.analyzers.common.null_model import shuffled
from layerlens.errors import InputError, OptionError, check_count, warn
from layerlens.inputs.batches import Batch, Data, Labels, Read, Samples
from layerlens.inputs.inputs import Forward, as_inputs
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import LayerProfile
from layerlens.signatures import public

from .linear_readout import FOLDS, Readout, Truth, inputs_as_rows, split_folds, true_labels

INPUT = "(input)"
"""Name of the row that is read from the inputs themselves."""

SMALL = 64


@public(renamed={"most": "max_samples", "shuffles": "permutations"})
def linear_probe(
    model: nn.Module,
    data: Samples,
    labels: Labels | None = None,
    layers: Selection = None,
    *,
    untrained: nn.Module | bool = True,
    pool: Pool = "mean",
    penalty: float = 1.0,
    permutations: int = 2,
    max_samples: int = 2000,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Read = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    """Measure how well a linear readout predicts a label from each layer, on samples that it was not fitted to.

    From the rows of a layer a logistic regression, in five folds, predicts each held-out sample's class; the value is
    the share of right answers (Alain & Bengio 2016). For labels that are floating-point numbers it is a ridge
    regression, and the value is R2. Compare it with

    - the inputs themselves, the first row `"(input)"`, where they are numbers: what needs no model;
    - an untrained twin: what the architecture alone makes easier, which is often a lot;
    - shuffled labels, the null: chance, and what the readout can memorize (Hewitt & Liang 2019 on controls).

    The data is read once per model. Cost: F for each sample, 2 F with an untrained twin, and five fits per layer, twin
    and permutation.

    Args:
        data: ... With an untrained twin it is read twice.
        labels: ... Whole numbers, names or booleans are classes, floating-point numbers are numbers.
        layers: which layers, see `Selection`; None for every layer but those that return another's output.
        untrained: True takes the model with the entries of each parameter in random order (buffers stay), False none;
            or a module of your own.
        pool: ... Rows of more than 1024 numbers are projected to as many random directions.
        permutations: number of random orders of the labels for the null; 0 for none.

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
        >>> found = linear_probe(nn.Sequential(nn.Linear(6, 12), nn.ReLU()), x, x[:, 0] > 0, permutations=1)
        >>> found.layers, found.series, bool(found.values[0, 0] > 0.9)
        (('(input)', '0', '1'), ('trained', 'untrained'), True)
    """
    check_count("max_samples", max_samples)
    check_count("permutations", permutations, least=0)
    if not isinstance(penalty, (int, float)) or not penalty > 0:
        raise OptionError(f"penalty must be a number above 0, got {penalty!r}.")
    data = Data.of(data, labels, batch_size=batch_size, batched=batched, read=read, progress=progress)
    if untrained is not False:
        data.check_rereadable(2, "linear_probe")
    readout = Readout(penalty, seed)

    def rows_of(model: nn.Module, layers: Selection, forward: Forward | None) -> Table:
        return layer_rows(model, data, layers, forward, pool, max_samples, seed, "linear_probe")

    table = rows_of(model, layers, forward)
    truth = true_labels(table.labels, "linear_probe")
    by_model = {"trained": table.layers}
    if untrained is not False:
        if untrained is True:
            paths = list(dict.fromkeys(name.split(" #")[0] for name in table.layers if name != INPUT))
            other = rows_of(model, paths, shuffled(model, forward, seed))
        else:
            other = rows_of(untrained, layers, forward)
        if other.count != table.count:
            raise InputError(f"linear_probe: the data had {table.count} samples, and {other.count} when read again.")
        by_model["untrained"] = other.layers
    folds = split_folds(truth, min(FOLDS, truth.smallest), seed)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(folds), generator=generator) for _ in range(permutations)]
    pairs = list(itertools.product(table.layers, by_model.values()))
    fits = [
        _fit(rows.get(name), readout, truth, folds, orders)
        for name, rows in track(pairs, "linear probes", enabled=progress)
    ]
    values, error, null = torch.tensor(fits, dtype=torch.float64).T.reshape(3, len(table.layers), -1).clone()
    _warn(table, len(folds), readout, layers is not None)
    columns = slice(None) if len(by_model) > 1 else 0
    classes = truth.kind == "classes"
    return LayerProfile(
        quantity=f"{'right answers' if classes else 'R2'} of a linear readout",
        layers=tuple(table.layers),
        values=values[:, columns],
        units="share of samples" if classes else "1",
        signed=False,
        method=f"linear probe of {truth.kind}, {len(folds)} samples, {len(set(folds.tolist()))} folds",
        settings={
            "pool": pool_name(pool),
            "penalty": penalty,
            "permutations": permutations,
            "max_samples": max_samples,
            "classes": truth.names,
            "untrained": untrained if isinstance(untrained, bool) else type(untrained).__name__,
            "seed": seed,
            "left_out": table.left_out,
        },
        series=tuple(by_model) if len(by_model) > 1 else (),
        error=error[:, columns],
        null=null[:, columns] if permutations else None,
        checks={
            "always the same answer": torch.tensor(truth.chance),
            "samples": torch.tensor(len(folds)),
        },
        explanation=(
            "Each value is how well a linear readout, fitted to other samples, predicts the label from that layer "
            "alone; what it adds to the input's row and to the untrained twin is the work of training.",
            "That a label can be read does not say that the model uses it: ask question='matters_to_output' for that.",
        ),
    )


def _fit(
    rows: torch.Tensor | None, readout: Readout, truth: Truth, folds: torch.Tensor, orders: list[torch.Tensor]
) -> tuple[float, float, float]:
    """Return value, error and null of one layer; NaN where it has no rows, or there are no orders."""
    if rows is None:
        return (math.nan,) * 3
    rows = readout.projected(rows)
    value, error = readout.score(rows, truth, folds)
    chance = [readout.held_out(rows, truth.take(order), folds).mean() for order in orders]
    return float(value), float(error), float(torch.stack(chance).mean()) if chance else math.nan


def layer_rows(
    model: nn.Module,
    data: Data,
    layers: Selection,
    forward: Forward | None,
    pool: Pool,
    max_samples: int,
    seed: int,
    what: str,
    *,
    more: Callable[[Batch, Rows], dict[str, torch.Tensor]] | None = None,
) -> Table:
    """Read the rows of every layer, and of the inputs where they are numbers; see `gather`."""

    def extra(batch: Batch, rows: Rows) -> dict[str, torch.Tensor]:
        own = inputs_as_rows(batch.inputs.floating(), rows.batch)
        return ({} if own is None else {INPUT: own}) | ({} if more is None else more(batch, rows))

    reader = FeatureReader(model, layers, pool=pool, forward=forward, distinct=True)
    return gather(reader, data, max_samples, seed, what, more=extra)


def _warn(table: Table, samples: int, readout: Readout, explicit: bool) -> None:
    """Warn of what would mislead."""
    warn_unread("linear_probe", table.left_out, explicit)
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
