"""A data set run through a model, layer by layer: what every analysis of layer dynamics starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from layerlens.errors import InputError
from layerlens.inputs.batches import Batch, batches
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import LayerPath, Layers
from layerlens.model.placement import home
from layerlens.model.trees import describe, first_tensor, version
from layerlens.probes.probe import Probe

from ..calls.fastpath import layers_called
from .layer_features import FeatureReader, Features, Rows


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set and how it is read; the fields are those of `layerlens.inputs.batches`."""

    data: Any
    size: int
    batched: bool | None
    read: Callable[[Any], Inputs]
    progress: bool | None
    doing: str

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        """The batches, on the device of the model."""
        for batch in batches(
            self.data, self.size, batched=self.batched, read=self.read, progress=self.progress, doing=self.doing
        ):
            yield dataclasses.replace(batch, inputs=moved(batch.inputs, model))


def read_again(data: Any, times: int, what: str) -> None:
    """Refuse data that is used up by the first reading.

    Raises:
        InputError: for an iterator.
    """
    if isinstance(data, Iterator):
        raise InputError(
            f"{what}: the data is {describe(data)}, which is used up by the first reading; give data that can be read "
            f"{times} times: a tensor, a list, a Dataset or a DataLoader."
        )


def moved(inputs: Inputs, model: nn.Module) -> Inputs:
    """The same inputs on the device of a model."""
    return inputs.to(home(model))


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of some samples of a data set.

    Attributes:
        layers: call of a layer -> `(samples, features)`.
        labels: of those samples; None where the data has none.
        index: which samples of the data set they are, rising.
        count: how many samples the data set has.
        left_out: call of a layer -> why it has no rows.
    """

    layers: dict[str, torch.Tensor]
    labels: list[Any] | None
    index: torch.Tensor
    count: int
    left_out: dict[str, str]


def handed_on(model: nn.Module, inputs: Inputs, forward: Forward | None) -> set[LayerPath]:
    """The layers that returned only tensors which another layer had returned before them.

    Such are containers that hand on the output of their last child, identities, and dropout in eval mode. The model is
    borrowed and run on the first sample.
    """
    sample = inputs.rows(torch.arange(1))
    with (
        borrowed(model, grad=False),
        layers_called(),
        Probe(model, keep="reference", reduce=_Kept) as record,
    ):
        sample.run(model, forward)
    known: set[tuple[int, int]] = set()
    own: set[LayerPath] = set()
    for call in record.order:
        kept: _Kept = call.output
        if kept.key not in known:
            own.add(call.layer)
            known.add(kept.key)
    return {call.layer for call in record.order} - own


class _Kept:
    """A tensor as its hook saw it, held so that no other gets its id."""

    def __init__(self, output: Any) -> None:
        self.tensor = first_tensor(output)
        self.key = (id(self), 0) if self.tensor is None else (id(self.tensor), version(self.tensor))


def distinct(model: nn.Module, inputs: Inputs, forward: Forward | None) -> list[LayerPath]:
    """Every layer but those that hand on what another returned; see `handed_on`."""
    dropped = handed_on(model, inputs, forward)
    return [path for path in Layers(model).select(None) if path not in dropped]


def run_once(reader: FeatureReader, inputs: Inputs, seed: int) -> Rows:
    """Run a reader on one batch; the seed is that of the numbers that the model draws."""
    with borrowed(reader.model, grad=False):
        torch.manual_seed(seed)
        return reader.read(inputs)


def gather(
    make: Callable[[Any], FeatureReader],
    layers: Any,
    source: Source,
    most: int,
    seed: int,
    *,
    more: Callable[[Batch, Rows], dict[str, torch.Tensor]] | None = None,
) -> Table:
    """Go through a data set once and keep the rows of at most `most` samples, each as likely to be kept as any other.

    Args:
        make: from a selection to a reader.
        layers: the selection; None for every distinct activation, see `distinct`.
        source: the data set.
        most: how many samples are kept.
        seed: of the choice, and for models that draw numbers.
        more: further rows of a batch by name, `(batch, features)`; they come first.

    Raises:
        InputError: when no layer has rows for every sample.
        LayerNotFound: when the selection matches no layer.
    """
    reader = make(layers)
    model, looked = reader.model, layers is not None
    features, generator = Features(), torch.Generator().manual_seed(seed)
    keys, index = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    labels: list[Any] | None = []
    count = 0
    for batch in source.batches(model):
        if not looked:
            reader, looked = make(distinct(model, batch.inputs, reader.forward)), True
        size = batch.inputs.batch
        rows = run_once(reader, batch.inputs, seed + count)
        features.add(rows if more is None else dataclasses.replace(rows, layers=more(batch, rows) | rows.layers))
        keys = torch.cat([keys, torch.rand(size, generator=generator, dtype=torch.float64)])
        index = torch.cat([index, torch.arange(count, count + size)])
        labels = None if labels is None or batch.labels is None else labels + batch.labels
        count += size
        if len(keys) > 2 * most:
            keys, index, labels = _thin(features, keys, index, labels, most)
    if len(keys) > most:
        keys, index, labels = _thin(features, keys, index, labels, most)
    whole = features.joined("read")
    ran = {name.split(" #")[0] for name in (*whole, *features.left_out)}
    for path in reader.layers:
        if path not in ran:
            features.left_out[path] = "did not run"
    return Table(whole, labels, index, count, features.left_out)


def _thin(
    features: Features, keys: torch.Tensor, index: torch.Tensor, labels: list[Any] | None, most: int
) -> tuple[torch.Tensor, torch.Tensor, list[Any] | None]:
    chosen = keys.argsort()[:most].sort().values
    features.keep(chosen)
    return keys[chosen], index[chosen], None if labels is None else [labels[k] for k in chosen.tolist()]


def labels_of(given: Any, table: Table, what: str) -> torch.Tensor:
    """The classes of the samples of a table by number, `(samples,)`; those in the data where none are given.

    Raises:
        InputError: when they are not one per sample of the data set.
    """
    listed = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(listed, str) or not isinstance(listed, (list, tuple)) or len(listed) != table.count:
        shown = f"{len(listed)} of them" if isinstance(listed, (list, tuple)) else describe(given)
        raise InputError(f"{what}: labels must hold one per sample, {table.count} in all; got {shown}.")
    if any(isinstance(one, (list, tuple, dict)) or one is None for one in listed):
        raise InputError(f"{what}: labels must hold one name or number per sample; got {listed[0]!r} for the first.")
    names = sorted({str(one) for one in listed})
    return torch.tensor([names.index(str(listed[k])) for k in table.index.tolist()])


def worth_telling(left_out: dict[str, str], explicit: bool) -> dict[str, str]:
    """Of the layers without numbers, those that the caller should hear of.

    Where every layer was asked for, it goes without saying that some return no floating-point tensor, or one that all
    samples share; not so that values are not finite, or that a layer has them for some samples only.
    """
    telling = ("NaN", "every sample", "between samples", "some samples")
    return {name: why for name, why in left_out.items() if explicit or any(part in why for part in telling)}
