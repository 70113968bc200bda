"""The shape that each layer gives to a data set: over how many directions it spreads, how separate classes are."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.features.feature_batches import Table, gather, warn_unread
from layerlens.analyzers.common.features.layer_features import FeatureReader, Pool, pool_name
from layerlens.analyzers.common.messages import listed
from layerlens.errors import InputError, check_count, warn
from layerlens.inputs.batches import Data, Labels, Read, Samples
from layerlens.inputs.inputs import Forward, as_inputs
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import LayerProfile
from layerlens.signatures import public

from .dimensions import LayerShape, layer_shape

SERIES = ("participation ratio", "participation ratio, units alike", "effective rank", "intrinsic dimension")
FEWEST = 8
"""Samples below which there is no shape to speak of."""


@public(renamed={"most": "max_samples", "shuffles": "permutations"})
def geometry(
    model: nn.Module,
    data: Samples,
    layers: Selection = None,
    labels: Labels | None = None,
    *,
    pool: Pool = "mean",
    max_samples: int = 1000,
    permutations: int = 20,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Read = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    r"""Measure over how many directions each layer spreads a data set, and how far it separates the classes.

    Of the samples' rows X in a layer, with eigenvalues l of their covariance:

    - participation ratio, (sum l)^2 / sum l^2 (Gao et al. 2017): k for k equal directions. Units of large spread
      dominate it, so it is also given with every unit scaled to the same spread ("units alike");
    - effective rank, exp(-sum p log p), p = sqrt(l) / sum sqrt(l) (Roy & Vetterli 2007; the RankMe of Garrido et al.
      2023, but for centered rows): counts small directions more. It grows with the number of samples;
    - intrinsic dimension by TwoNN (Facco et al. 2017): the number of directions around a sample, also on a curved
      sheet, from the ratio of the distances to the two nearest samples;
    - class separation, with labels: tr S_B / (tr S_B + tr S_W), the share of the spread that lies between classes.

    The data is read once. Cost: F for each sample, two more runs of the first batch, and an eigenvalue problem of
    `max_samples` x `max_samples` for each layer and group of the jackknife.

    Args:
        layers: which layers, see `Selection`; None for every layer but those that return another's output.
        permutations: number of random orders of the labels for the null.

    Returns:
        A `LayerProfile` with a series for each of the above. The error is a jackknife over ten groups of samples; for
        the intrinsic dimension, the error of its fit. The null is an isotropic Gaussian cloud of as many samples and
        features; for the class separation, the mean over shuffled labels. Its checks are `"samples"`, `"features"` of
        each layer, and `"largest unit"`, the share of the spread in one unit.

    Raises:
        InputError: when there are fewer than 8 samples, or labels are not one per sample.
        LayerNotFound: when the selection matches no layer.
        OptionError: when an option is out of range.

    Warns:
        UserWarning: when a layer has more features than there are samples, when one unit holds most of its spread,
            when it is constant or many samples are duplicates in it, and for layers left out.

    Example:
        >>> x = torch.randn(500, 3) @ torch.eye(3, 20)  # three directions in twenty
        >>> found = geometry(nn.Sequential(nn.Identity(), nn.Linear(20, 20)), x, "1")
        >>> found.series[3], bool(abs(found.values[0, 3] - 3) < 0.5)
        ('intrinsic dimension', True)
    """
    check_count("max_samples", max_samples)
    check_count("permutations", permutations)
    data = Data.of(data, labels, batch_size=batch_size, batched=batched, read=read, progress=progress)
    reader = FeatureReader(model, layers, pool=pool, forward=forward, distinct=True)
    table = gather(reader, data, max_samples, seed, "geometry")
    count = len(table.index)
    if count < FEWEST:
        raise InputError(f"geometry: {count} samples have no shape; give at least {FEWEST}, better hundreds.")
    classes = _classes(table)
    shapes = [
        layer_shape(rows.double(), classes, permutations, seed)
        for rows in track(table.layers.values(), "geometry", enabled=progress)
    ]
    names = tuple(table.layers)
    _warn(names, shapes, count, table.left_out, layers is not None)
    ending = "." if classes is None else "; the class separation is the share of the spread that lies between classes."
    return LayerProfile(
        quantity="dimensions",
        layers=names,
        values=torch.stack([shape.values for shape in shapes]),
        units="1",
        signed=False,
        method="spectra and nearest neighbors of "
        + (f"{count} of {table.count} samples" if table.count > count else f"{count} samples"),
        settings={
            "pool": pool_name(pool),
            "max_samples": max_samples,
            "permutations": permutations,
            "classes": None if classes is None else int(classes.max()) + 1,
            "seed": seed,
            "left_out": table.left_out,
        },
        series=SERIES if classes is None else (*SERIES, "class separation"),
        error=torch.stack([shape.error for shape in shapes]),
        null=torch.stack([shape.null for shape in shapes]),
        checks={
            "samples": torch.tensor(count),
            "features": torch.tensor([shape.features for shape in shapes]),
            "largest unit": torch.tensor([shape.largest[1] for shape in shapes], dtype=torch.float64),
        },
        explanation=(
            "The first three series say over how many directions a layer spreads these samples as a whole, the "
            f"intrinsic dimension how many directions the samples around one of them have{ending}",
            "All of them depend on the number of samples: a value near its null is what any cloud of that many samples "
            "and features has, and says nothing about the layer.",
        ),
    )


def _classes(table: Table) -> torch.Tensor | None:
    """Number the classes of the samples, `(samples,)`; None without labels.

    Raises:
        InputError: when all samples have one label.
    """
    if table.labels is None:
        return None
    names = sorted({str(one) for one in table.labels})
    if len(names) < 2:
        raise InputError("geometry: all samples have one label, and classes need two; leave the labels out.")
    return torch.tensor([names.index(str(one)) for one in table.labels])


def _warn(names: tuple[str, ...], shapes: list[LayerShape], n: int, left_out: dict[str, str], explicit: bool) -> None:
    """Warn of what would mislead."""
    warn_unread("geometry", left_out, explicit)
    pairs = list(zip(names, shapes, strict=True))
    if wide := [name for name, shape in pairs if shape.features > n]:
        warn(
            f"geometry: {n} samples are fewer than the features of {listed(wide)}, so no rank can exceed {n - 1}; "
            "compare with the null, or give more samples.",
        )
    if large := [(name, shape.largest) for name, shape in pairs if shape.features > 2 and shape.largest[1] > 0.5]:
        name, (unit, share) = max(large, key=lambda pair: pair[1][1])
        warn(
            f"geometry: one unit holds more than half of the spread of {listed([name for name, _ in large])} "
            f"(unit {unit} of {name}: {share:.0%}), and the participation ratio is low "
            "for that reason alone; read it with units alike.",
        )
    if constant := [name for name, shape in pairs if bool(shape.values[0].isnan())]:
        warn(f"geometry: {listed(constant)} is constant over the samples: NaN.")
    if doubled := [name for name, shape in pairs if shape.duplicates > 0.1 and not bool(shape.values[0].isnan())]:
        warn(
            f"geometry: more than a tenth of the samples have a duplicate in {listed(doubled)}; the intrinsic "
            "dimension is measured on the others.",
        )
