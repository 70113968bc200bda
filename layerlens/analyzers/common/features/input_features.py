"""Features: which values of an input are kept or removed together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from layerlens.errors import InputError, OptionError, choose
from layerlens.model.trees import describe

from ..leaves.leaves import Leaf, leaf_name, spread_axes, unit_and_places
from ..scorer import Scorer
from ..token_inputs import used_places
from .column_groups import NAMED, grouped, is_groups
from .superpixels import superpixels

Spec: TypeAlias = str | int | torch.Tensor | Mapping[str, Any] | None
NAMES = ("values", "places", "channels", "cells", "superpixels")
CELLS = 64
"""About how many features an image, a volume or a series has by default."""


@dataclasses.dataclass(frozen=True)
class Features:
    """Which feature every value of the leaves belongs to.

    Attributes:
        labels: by leaf, `(1 or batch, ...)`, broadcasting to the leaf; -1 for values that are never removed.
        count: number of features; labels run from 0 to count - 1 over all leaves.
    """

    labels: dict[str, torch.Tensor]
    count: int

    def present(self, batch: int) -> torch.Tensor:
        """Return which features each sample has, bool `(batch, count)`, on the CPU: padding is none."""
        present = torch.zeros(batch, self.count + 1, dtype=torch.bool)
        for labels in self.labels.values():
            index = torch.where(labels < 0, self.count, labels).reshape(len(labels), -1).cpu()
            present.scatter_(1, index.expand(batch, -1), True)
        return present[:, :-1]

    def groups(self, batch: int) -> list[tuple[torch.Tensor, torch.Tensor, Features]]:
        """Return samples with the same features together: their rows, the features, and these numbered from 0.

        One group unless samples differ in what is never removed, such as padding.
        """
        kinds, kind = torch.unique(self.present(batch), dim=0, return_inverse=True)
        groups = []
        for number, own in enumerate(kinds):
            if not bool(own.any()):
                continue
            numbers = torch.full((self.count + 1,), -1)
            numbers[:-1][own] = torch.arange(int(own.sum()))
            renumbered = {name: numbers.to(one.device)[one] for name, one in self.labels.items()}  # -1 is the last
            rows, columns = (kind == number).nonzero().flatten(), own.nonzero().flatten()
            groups.append((rows, columns, Features(renumbered, len(columns))))
        return groups

    def masks(self, keep: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what is kept of each value, by leaf `(n, ...)`, from what is kept of each feature, `(n, count)`.

        Args:
            keep: 1 or True keeps, 0 or False removes.
            rows: sample of the batch that each row belongs to, `(n,)`.
        """
        padded = torch.cat([keep, torch.ones_like(keep[:, :1])], dim=1)  # the last is for -1
        kept_values = {}
        for name, labels in self.labels.items():
            index = torch.where(labels < 0, self.count, labels).reshape(len(labels), -1)
            kept = padded.index_select(1, index[0]) if len(index) == 1 else padded.gather(1, index[rows])
            kept_values[name] = kept.reshape(len(kept), *labels.shape[1:])
        return kept_values

    def spread(self, values: torch.Tensor, leaves: Mapping[str, Leaf]) -> dict[str, torch.Tensor]:
        """Put numbers by feature, `(batch, count)`, at every value of the leaves; 0 where there is no feature."""
        padded = torch.cat([values, torch.zeros_like(values[:, :1])], dim=1)
        by_leaf = {}
        for name, labels in self.labels.items():
            leaf = leaves[name].value
            index = torch.where(labels < 0, self.count, labels).expand(len(values), *labels.shape[1:])
            spread = padded.gather(1, index.reshape(len(index), -1)).reshape(index.shape)
            if leaves[name].layer is not None:  # one number per token: its embedding's features share it
                by_leaf[name] = spread.expand(*leaf.shape[:-1], 1) / leaf.shape[-1]
                by_leaf[name] = by_leaf[name].expand(leaf.shape)
            else:
                by_leaf[name] = spread.expand(leaf.shape)
        return by_leaf


def features_of(scorer: Scorer, spec: Spec = None, names: Sequence[str] | None = None) -> Features:
    """Return the features of the leaves of a scorer.

    Args:
        scorer: scorer of a borrowed model.
        spec: None for the usual: every column of a table, every token, about `CELLS` cells of an image, a volume or a
            series. `"values"`: each value by itself; `"places"`: each pixel, token or step; `"channels"`; `"cells"`
            or a whole number: about so many equal boxes of places; `"superpixels"` of an image. Or a tensor of labels
            (whole numbers) that broadcasts to the input, -1 for what is never removed; or a dict of those by input, in
            which equal labels are one feature of several inputs. Or groups of columns, see `grouped`.
        names: names of the columns, for groups.

    Raises:
        OptionError: when it does not fit the input.
        InputError: when no value has a feature.
    """
    if isinstance(spec, Mapping) and is_groups(spec):
        groups = grouped(scorer, spec, names)
        by_leaf = {
            name: _without_padding(scorer, name, _labels(scorer, name, leaf, groups[name]))
            for name, leaf in scorer.leaves.items()
        }
        return Features({name: one.to(scorer.rows.device) for name, one in by_leaf.items()}, len(spec))
    if isinstance(spec, Mapping):
        spec = {leaf_name(scorer.inputs, scorer.leaves, name, NAMED): part for name, part in spec.items()}
    labels, start, shared = {}, 0, dict[int, int]()  # shared: label that the caller gave -> number of the feature
    for name, leaf in scorer.leaves.items():
        own = spec.get(name) if isinstance(spec, Mapping) else spec
        leaf_labels = _without_padding(scorer, name, _labels(scorer, name, leaf, own))
        unique, index = torch.unique(leaf_labels[leaf_labels >= 0], return_inverse=True)
        known = shared if isinstance(own, torch.Tensor) else {}
        new = [label for label in unique.tolist() if label not in known]
        known |= {label: start + number for number, label in enumerate(new)}
        numbers = torch.tensor([known[label] for label in unique.tolist()], dtype=torch.int64)
        numbered = torch.full_like(leaf_labels, -1)
        numbered[leaf_labels >= 0] = numbers.to(index.device)[index]
        labels[name] = numbered.to(leaf.value.device)
        start += len(new)
    if not start:
        raise InputError(f"there are no features in input {', '.join(labels)}: every label is below 0.")
    return Features(labels, start)


def _labels(scorer: Scorer, name: str, leaf: Leaf, spec: Spec) -> torch.Tensor:
    value = leaf.value
    if isinstance(spec, torch.Tensor):
        return _checked_labels(scorer, name, leaf, spec)
    if isinstance(spec, bool) or not (spec is None or isinstance(spec, (str, int))):
        raise OptionError(f"cannot read features from {describe(spec)}. Give {', '.join(NAMES)}, a number or labels.")
    if isinstance(spec, str):
        choose("kind of features", spec, NAMES)
    if leaf.layer is not None:
        if spec not in (None, "places"):
            others = [other for other, one in scorer.leaves.items() if one.layer is None]
            instead = f" For the other input: features={{{others[0]!r}: {spec!r}}}." if others else ""
            raise OptionError(
                f"the features of token ids {name!r} are tokens, or labels (batch, token); got {spec!r}.{instead}"
            )
        sizes = value.shape[1:-1]  # none where each sample has one id
        return torch.arange(sizes.numel()).reshape(1, *sizes, 1)
    sizes = value.shape[1:]
    if not sizes or (spec is None and len(sizes) == 1) or spec == "values":
        return torch.arange(max(1, value[0].numel())).reshape(1, *sizes)
    unit, places = unit_and_places(leaf)
    if spec == "channels":
        if unit is None:
            raise OptionError(f"input {name!r}, {describe(value)}, has no axis of channels that is known.")
        return torch.arange(sizes[unit]).reshape(1, *[size if axis == unit else 1 for axis, size in enumerate(sizes)])
    if spec == "superpixels":
        if len(sizes) != 3 or unit is None or len(spread_axes(leaf)) != 2:
            raise OptionError(
                f"superpixels are of images (batch, channel, height, width); {name!r} is {describe(value)}."
            )
        return superpixels(value.movedim(unit + 1, 1), CELLS).unsqueeze(unit + 1)
    shape = [size if axis in places else 1 for axis, size in enumerate(sizes)]
    if spec == "places":
        return torch.arange(torch.Size(shape).numel()).reshape(1, *shape)
    return _boxes(shape, CELLS if spec in (None, "cells") else int(spec))


def _boxes(shape: list[int], count: int) -> torch.Tensor:
    """Labels of about `count` equal boxes of the places, `(1, *shape)`.

    Raises:
        OptionError: when the count is below 1.
    """
    if count < 1:
        raise OptionError(f"features must be 1 or more, got {count}.")
    places = [size for size in shape if size > 1]
    side = (torch.Size(places).numel() / count) ** (1 / max(1, len(places)))
    label = torch.zeros(1, *shape, dtype=torch.int64)
    for axis, size in enumerate(shape):
        if size > 1:
            parts = max(1, min(size, round(size / max(side, 1))))
            step = (torch.arange(size) * parts // size).reshape([-1 if own == axis else 1 for own in range(len(shape))])
            label = label * parts + step
    return label


def _checked_labels(scorer: Scorer, name: str, leaf: Leaf, labels: torch.Tensor) -> torch.Tensor:
    """Return the labels that the caller gave, checked.

    Raises:
        OptionError: when they are not whole numbers, or do not broadcast to the input.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.is_complex():
        raise OptionError(f"labels of features are whole numbers, got {describe(labels)}.")
    if leaf.layer is not None and labels.ndim < leaf.value.ndim:
        labels = labels.unsqueeze(-1)  # one label per token, for all features of its embedding
    padding = scorer.padding.get(name)
    try:
        if padding is not None:
            fitted = padding.fitted(labels.long(), leaf.value.ndim)
            return fitted[..., :1] if leaf.layer is not None and labels.shape[-1] == 1 else fitted
        labels.broadcast_to(leaf.value.shape)
    except RuntimeError as error:
        raise OptionError(
            f"labels of shape {tuple(labels.shape)} do not broadcast to input {name!r} of shape "
            f"{tuple(leaf.value.shape)}."
        ) from error
    return labels.long().reshape([1] * (leaf.value.ndim - labels.ndim) + list(labels.shape))


def _without_padding(scorer: Scorer, name: str, labels: torch.Tensor) -> torch.Tensor:
    """Give padding the label -1: it is not a feature, as nothing would change without it."""
    used = used_places(scorer, name)
    if used is None:
        return labels
    spread = labels.expand(*used.shape, *labels.shape[2:]).clone()
    spread[~used.to(spread.device)] = -1
    return spread
