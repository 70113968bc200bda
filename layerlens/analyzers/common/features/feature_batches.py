"""A data set run through a model, layer by layer: what every analysis of layer dynamics starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from layerlens.inputs.batches import Batch, Data
from layerlens.inputs.inputs import Inputs
from layerlens.model.borrowed import borrowed, seed_torch

from ..messages import warn_left_out
from .layer_features import FeatureReader, Features, Rows, silent_layers


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of some samples of a data set.

    Attributes:
        layers: call of a layer -> `(samples, features)`.
        labels: labels of those samples; None where the data has none.
        index: which samples of the data set they are, rising.
        count: number of samples of the data set.
        left_out: call of a layer -> why it has no rows.
    """

    layers: dict[str, torch.Tensor]
    labels: list[Any] | None
    index: torch.Tensor
    count: int
    left_out: dict[str, str]


def run_once(reader: FeatureReader, inputs: Inputs, seed: int) -> Rows:
    """Run a reader on one batch; the seed is for the numbers that the model draws."""
    reader.drop_repeated(inputs)
    with borrowed(reader.model, grad=False):
        seed_torch(seed)
        return reader.read(inputs)


def gather(
    reader: FeatureReader,
    data: Data,
    max_samples: int,
    seed: int,
    what: str,
    *,
    more: Callable[[Batch, Rows], dict[str, torch.Tensor]] | None = None,
) -> Table:
    """Read a data set once and keep the rows of at most `max_samples` samples, all equally likely to be kept.

    Args:
        reader: reader of the layers.
        data: the data set.
        max_samples: number of samples kept.
        seed: seed of the choice, and of models that draw numbers.
        what: name of the analysis, for the bar and for errors.
        more: further rows of a batch by name, `(batch, features)`; they come first.

    Raises:
        InputError: when no layer has rows for every sample.
    """
    features, generator = Features(), torch.Generator().manual_seed(seed)
    keys, index = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    labels: list[Any] | None = []
    count = 0
    for batch in data.batches(reader.model, what):
        size = batch.inputs.batch
        rows = run_once(reader, batch.inputs, seed + count)
        features.add(rows if more is None else dataclasses.replace(rows, layers=more(batch, rows) | rows.layers))
        keys = torch.cat([keys, torch.rand(size, generator=generator, dtype=torch.float64)])
        index = torch.cat([index, torch.arange(count, count + size)])
        labels = None if labels is None or batch.labels is None else labels + batch.labels
        count += size
        if len(keys) > 2 * max_samples:
            keys, index, labels = _thin(features, keys, index, labels, max_samples)
    if len(keys) > max_samples:
        keys, index, labels = _thin(features, keys, index, labels, max_samples)
    whole = features.joined("read")
    features.left_out.update(silent_layers(reader.layers, (*whole, *features.left_out)))
    return Table(whole, labels, index, count, features.left_out)


def _thin(
    features: Features, keys: torch.Tensor, index: torch.Tensor, labels: list[Any] | None, count: int
) -> tuple[torch.Tensor, torch.Tensor, list[Any] | None]:
    """Keep the samples with the smallest keys."""
    chosen = keys.argsort()[:count].sort().values
    features.keep(chosen)
    return keys[chosen], index[chosen], None if labels is None else [labels[k] for k in chosen.tolist()]


def warn_unread(method: str, left_out: Mapping[str, str], explicit: bool) -> None:
    """Warn of layers without numbers.

    Where every layer was asked for, no warning is due for those that return no floating-point tensor, or one that all
    samples share; but for values that are not finite, or that a layer has for some samples only.
    """
    reasons = ("NaN", "every sample", "between samples", "some samples")
    noted = {name: why for name, why in left_out.items() if explicit or any(part in why for part in reasons)}
    warn_left_out(method, noted, explicit)
