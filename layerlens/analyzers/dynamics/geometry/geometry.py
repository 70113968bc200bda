"""The shape that each layer gives to a data set: in how many directions it spreads, and how apart its classes lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.features.feature_batches import Source, Table, gather, labels_of, worth_telling
from layerlens.analyzers.common.features.layer_features import FeatureReader
from layerlens.analyzers.common.messages import listed, warn_left_out
from layerlens.errors import InputError, check_count, warn
from layerlens.inputs.batches import Samples
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import LayerProfile

from .layer_geometry import Measured, Shape

SERIES = ("participation ratio", "participation ratio, units alike", "effective rank", "intrinsic dimension")
LEAST = 8
"""Samples below which there is no shape to speak of."""


def geometry(
    model: nn.Module,
    data: Samples,
    layers: Selection = None,
    labels: Any = None,
    *,
    pool: Literal["mean", "last", "flatten"] | Callable[[torch.Tensor], torch.Tensor] = "mean",
    most: int = 1000,
    shuffles: int = 20,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Callable[[Any], Inputs] = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    r"""The dimensions that each layer spreads a data set over, and how apart it puts the classes.

    Of the samples' rows X in a layer, with eigenvalues l of their covariance:

    - participation ratio, (sum l)^2 / sum l^2 (Gao et al. 2017): k for k equal directions. Units of large spread rule
      it, so it is also given with every unit scaled to the same spread ("units alike");
    - effective rank, exp(-sum p log p), p = sqrt(l) / sum sqrt(l) (Roy & Vetterli 2007; RankMe of Garrido et al. 2023
      is the same of rows that are not centred): counts small directions more. It grows with the number of samples;
    - intrinsic dimension by TwoNN (Facco et al. 2017): the number of directions that a sample's neighborhood has, also
      of a curved sheet, from the ratio of the distances to the two nearest samples;
    - class separation, with labels: tr S_B / (tr S_B + tr S_W), the share of the spread that lies between classes.

    The data is read once; at most `most` samples, drawn at random, are kept. Cost: F for each sample, two runs of the
    first batch more, and an eigenvalue problem of `most` x `most` for each layer and group of the jackknife.

    Args:
        model: any module; it is run in eval mode.
        data: samples, see `layerlens.inputs.batches`.
        layers: which layers, see `Selection`; None for every distinct activation (of layers that hand on the same
            tensor, the first).
        labels: one name or number per sample; None takes those in the data, if it has any.
        pool: how a layer becomes a row: `"mean"` takes each unit's mean over places, `"last"` its last place,
            `"flatten"` all numbers, or a function from `(batch, units, *places)` to `(batch, features)`.
        most: how many samples are kept.
        shuffles: how often the labels are put in random order, for the null.
        batch_size: samples that run together.
        batched: whether the items of an iterable are batches; None: those of a DataLoader are.
        read: makes model inputs of a batch, or of one text.
        seed: of the choice of samples, of the nulls, and for models that draw numbers.
        progress: whether to show a bar; None shows it in a terminal.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `LayerProfile` with a series for each of the above. The error is a jackknife over ten groups of samples, and
        for the intrinsic dimension that of its fit. The null is a Gaussian cloud of as many samples and features,
        alike in all directions, and for the class separation the mean over shuffled labels. Its checks are
        `"samples"`, `"features"` of each layer, and `"largest unit"`, the share of the spread in one unit.

    Raises:
        InputError: when there are fewer than 8 samples, or the labels are not one per sample.
        LayerNotFound: when the selection matches no layer.
        OptionError: when an option is out of range.

    Warns:
        UserWarning: when a layer has more features than there are samples, when one unit holds most of its spread,
            when it is constant or many samples are twins in it, and for layers left out.

    Example:
        >>> x = torch.randn(500, 3) @ torch.eye(3, 20)  # three directions in twenty
        >>> found = geometry(nn.Sequential(nn.Identity(), nn.Linear(20, 20)), x, "1")
        >>> found.series[3], bool(abs(found.values[0, 3] - 3) < 0.5)
        ('intrinsic dimension', True)
    """
    check_count("most", most)
    check_count("shuffles", shuffles)
    source = Source(data, batch_size, batched, read, progress, "reading layers")
    table = gather(lambda chosen: FeatureReader(model, chosen, pool=pool, forward=forward), layers, source, most, seed)
    if len(table.index) < LEAST:
        raise InputError(f"geometry: {len(table.index)} samples have no shape; give at least {LEAST}, better hundreds.")
    given = table_labels(labels, table)
    shape = Shape(given, shuffles, seed)
    found = [shape(rows.double()) for rows in track(table.layers.values(), "geometry", enabled=progress)]
    names = tuple(table.layers)
    _warn(names, found, len(table.index), table.left_out, layers is not None)
    series = (*SERIES, *(["class separation"] if given is not None else []))
    kept = (
        f"{len(table.index)} of {table.count} samples" if table.count > len(table.index) else f"{table.count} samples"
    )
    return LayerProfile(
        quantity="dimensions",
        layers=names,
        values=torch.stack([one.values for one in found]),
        units="1",
        signed=False,
        method=f"spectra and nearest neighbors of {kept}",
        settings={
            "pool": pool if isinstance(pool, str) else getattr(pool, "__name__", type(pool).__name__),
            "most": most,
            "shuffles": shuffles,
            "classes": None if given is None else int(given.max()) + 1,
            "seed": seed,
            "left_out": table.left_out,
        },
        series=series,
        error=torch.stack([one.error for one in found]),
        null=torch.stack([one.null for one in found]),
        checks={
            "samples": torch.tensor(len(table.index)),
            "features": torch.tensor([one.features for one in found]),
            "largest unit": torch.tensor([one.largest[1] for one in found], dtype=torch.float64),
        },
        explanation=(
            "The first three series say over how many directions a layer spreads these samples as a whole, the "
            "intrinsic dimension how many directions the samples around one of them have"
            + (
                "; the class separation is the share of the spread that lies between classes."
                if given is not None
                else "."
            ),
            "All of them depend on the number of samples: a value near its null is what any cloud of that many samples "
            "and features has, and says nothing of the layer.",
        ),
    )


def table_labels(labels: Any, table: Table) -> torch.Tensor | None:
    """The classes of the samples kept, `(samples,)`; None where neither the caller nor the data has any.

    Raises:
        InputError: when they are not one per sample, or all the same.
    """
    if labels is None and table.labels is None:
        return None
    if labels is None:
        names = sorted({str(one) for one in table.labels or ()})
        found = torch.tensor([names.index(str(one)) for one in table.labels or ()])
    else:
        found = labels_of(labels, table, "geometry")
    if len(set(found.tolist())) < 2:
        raise InputError("geometry: all samples have one label, and classes need two; leave the labels out.")
    return found


def _warn(names: tuple[str, ...], found: list[Measured], n: int, left_out: dict[str, str], explicit: bool) -> None:
    """Say what would mislead."""
    warn_left_out("geometry", worth_telling(left_out, explicit), explicit)
    pairs = list(zip(names, found, strict=True))
    if wide := [name for name, one in pairs if one.features > n]:
        warn(
            f"geometry: {n} samples are fewer than the features of {listed(wide)}, so no rank can exceed {n - 1}; "
            "compare with the null, or give more samples.",
        )
    if large := [(name, one.largest) for name, one in pairs if one.features > 2 and one.largest[1] > 0.5]:
        name, (unit, share) = max(large, key=lambda pair: pair[1][1])
        warn(
            f"geometry: one unit holds more than half of the spread of {listed([name for name, _ in large])} "
            f"(unit {unit} of {name}: {share:.0%}), and the participation ratio is low "
            "for that alone; read it with units alike.",
        )
    if flat := [name for name, one in pairs if bool(one.values[0].isnan())]:
        warn(f"geometry: {listed(flat)} is constant over the samples: NaN.")
    if twins := [name for name, one in pairs if one.twins > 0.1 and not bool(one.values[0].isnan())]:
        warn(
            f"geometry: more than a tenth of the samples have a twin in {listed(twins)}; the intrinsic dimension is "
            "that of the others.",
        )
