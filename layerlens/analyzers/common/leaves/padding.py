"""Leaves without padding: the tokens of texts of one length, wherever they lie in a padded batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from layerlens.inputs.inputs import Forward, Inputs
from layerlens.inputs.sequences import sequences, tokens_first
from layerlens.model.borrowed import borrowed

from .leaves import Leaf, find_leaves


@dataclasses.dataclass(frozen=True)
class OneLength(Inputs):
    """Samples of a padded batch whose texts have one length; methods attribute to their tokens alone.

    Attributes:
        samples: which samples of the batch they are.
        whole: number of samples of the batch.
    """

    samples: tuple[int, ...] = ()
    whole: int = 0


@dataclasses.dataclass(frozen=True)
class Padding:
    """Where the tokens of a leaf lie in its padded form.

    Attributes:
        padded: the leaf with its padding, `(batch, place, ...)`.
        places: places of the tokens, `(batch, token)`.
        samples: which samples of the caller's batch they are, `(batch,)`.
        whole: number of samples of the caller's batch.
    """

    padded: torch.Tensor
    places: torch.Tensor
    samples: torch.Tensor
    whole: int

    def take(self, padded: torch.Tensor) -> torch.Tensor:
        """Return `(batch, token, ...)` of `(batch, place, ...)`."""
        return padded.gather(1, self._index(self.places, padded))

    def put(self, values: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the padded leaf, of samples `rows`, with its tokens replaced by `values`, `(n, token, ...)`."""
        rows = torch.arange(len(self.places), device=self.places.device) if rows is None else rows
        return self.padded[rows].scatter(1, self._index(self.places[rows], values), values)

    def zeros(self, values: torch.Tensor) -> torch.Tensor:
        """Return `(batch, place, ...)` of `(batch, token, ...)`, with 0 for padding."""
        zeros = values.new_zeros(len(values), self.padded.shape[1], *values.shape[2:])
        return zeros.scatter(1, self._index(self.places, values), values)

    def fitted(self, given: torch.Tensor, ndim: int) -> torch.Tensor:
        """Return the tokens of a tensor that broadcasts to the first axes of the caller's whole, padded input.

        Raises:
            RuntimeError: when it does not broadcast.
        """
        shape = (self.whole, *self.padded.shape[1:ndim])
        return self.take(given.broadcast_to(shape)[self.samples.to(given.device)])

    def _index(self, places: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return places.reshape(*places.shape, *[1] * (like.ndim - 2)).expand(*places.shape, *like.shape[2:])


def paddings(inputs: Inputs, leaves: Mapping[str, Leaf]) -> dict[str, Padding]:
    """Return the padding of the leaves, by name; none but for texts of one length."""
    if not isinstance(inputs, OneLength):
        return {}
    found, known = {}, sequences(inputs, numbers(leaves))
    for name, leaf in leaves.items():
        if leaf.value.ndim < 2:
            continue
        if leaf.place is not None:  # a layer: its places are those of the only sequence of as many
            axes, shape = leaf.place.axes, leaf.value.shape
            texts = len(shape) == 3 and (axes is None or axes[1] not in ("channel", "feature"))
            own = [one for one in known if texts and one.count == shape[1]]
        else:
            own = [one for one in known if name in one.names]
        used = own[0].used if len(own) == 1 else None
        if used is None or used.shape != leaf.value.shape[:2]:
            used = torch.ones(leaf.value.shape[:2], dtype=torch.bool)
        order, counts = tokens_first(used.to(leaf.value.device))
        samples = torch.tensor(inputs.samples, device=order.device)
        found[name] = Padding(leaf.value, order[:, : int(counts[0])], samples, inputs.whole)
    return found


def numbers(leaves: Mapping[str, Leaf]) -> list[str]:
    """Return the names of the inputs that the model calculates with: numbers below 0 are then not padding."""
    return [name for name, leaf in leaves.items() if leaf.is_input]


def of_one_length(model: nn.Module, inputs: Inputs, forward: Forward | None) -> list[OneLength]:
    """Return the samples of a padded batch by the lengths of their texts; nothing where there is no padding."""
    known = sequences(inputs)
    if any(one.ids is not None and bool((one.ids < 0).any()) for one in known):
        with borrowed(model, grad=False):
            known = sequences(inputs, numbers(find_leaves(model, inputs, forward, whole="always")))
    masks = [one.used for one in known if one.used is not None and not bool(one.used.all())]
    if not masks:
        return []
    rows_by_lengths: dict[tuple[int, ...], list[int]] = {}
    for row, lengths in enumerate(zip(*(mask.sum(dim=1).tolist() for mask in masks), strict=True)):
        rows_by_lengths.setdefault(lengths, []).append(row)
    groups = []
    for rows in rows_by_lengths.values():
        own = inputs.rows(torch.tensor(rows))
        kept = {field.name: getattr(own, field.name) for field in dataclasses.fields(Inputs)}
        groups.append(OneLength(**kept, samples=tuple(rows), whole=inputs.batch))
    return groups
