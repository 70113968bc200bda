"""Names of features, groups of columns of a table, and ranges, as users give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from layerlens.analyzers.common.features.column_groups import column_names, is_groups
from layerlens.analyzers.common.features.input_features import Features, Spec as FeatureSpec, features_of
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import OptionError, choose
from layerlens.model.trees import describe

Names = Sequence[str] | None

Pairs = Sequence[float] | Sequence[Sequence[float]] | torch.Tensor
Ranges = Pairs | Mapping[str, Sequence[float]]
"""A pair (low, high) for all features, one for each in order, or a pair by name."""


def named_features(scorer: Scorer, spec: FeatureSpec, names: Names) -> tuple[Features, tuple[str, ...]]:
    """Return the features of the input and a name for each.

    Args:
        scorer: scorer of a borrowed model.
        spec: as in `features_of`; or groups of the columns of a table, a dict from the name of a group to a list of
            columns, by number or by name.
        names: names of the columns, where groups are given; else names of the features; None takes those of the
            columns where they are known, and numbers others.

    Raises:
        OptionError: when features or names do not fit the input.
    """
    if names is not None and (isinstance(names, str) or not all(isinstance(name, str) for name in names)):
        raise OptionError(f"names must be a list of texts, got {names!r}.")
    listed = None if names is None else list(names)
    if listed is not None and len(set(listed)) != len(listed):
        raise OptionError(f"names must differ from each other, got {listed!r}.")
    if isinstance(spec, Mapping) and is_groups(spec):
        return features_of(scorer, spec, listed), tuple(map(str, spec))
    features = features_of(scorer, spec)
    if listed is None:
        return features, _default_names(scorer, features, spec)
    if len(listed) != features.count:
        raise OptionError(f"{len(listed)} names were given for {features.count} features.")
    return features, tuple(listed)


def _default_names(scorer: Scorer, features: Features, spec: FeatureSpec) -> tuple[str, ...]:
    """Return names such as `feature 3`, `token 0` or `cell 12`, after the name of the input if there are several."""
    names = []
    words = {"places": "place", "channels": "channel", "superpixels": "superpixel", "cells": "cell"}
    for name, labels in features.labels.items():
        leaf, input_spec = scorer.leaves[name], spec.get(name) if isinstance(spec, Mapping) else spec
        if leaf.layer is not None:
            word = "token"
        elif isinstance(input_spec, str):
            word = words.get(input_spec, "feature")
        else:
            cells = isinstance(input_spec, int) or (input_spec is None and leaf.value.ndim > 2)
            word = "cell" if cells else "feature"
        count = len(set(labels[labels >= 0].tolist()))
        before = f"{name} " if len(features.labels) > 1 else ""
        columns = column_names(scorer, name)
        known = columns and count == len(columns) and not isinstance(input_spec, torch.Tensor)
        names += [before + (columns[number] if known else f"{word} {number}") for number in range(count)]
    return tuple(names)


def read_ranges(ranges: Ranges, names: tuple[str, ...]) -> torch.Tensor:
    """Read the smallest and the largest value of each feature, `(features, 2)`, float64.

    Args:
        ranges: a pair (low, high) for all features, one pair for each in order, or a dict from name to pair.
        names: names of the features.

    Raises:
        OptionError: when the ranges cannot be read, or one is empty or infinite.
    """
    if isinstance(ranges, Mapping):
        for name in ranges:
            choose("feature in the ranges", name, names)
        missing = [name for name in names if name not in ranges]
        if missing:
            raise OptionError(f"ranges hold no pair for {', '.join(missing[:5])}; give (low, high) for each feature.")
        ranges = [ranges[name] for name in names]
    try:
        given = ranges.detach().cpu() if isinstance(ranges, torch.Tensor) else np.asarray(ranges, dtype=np.float64)
        pairs = torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise OptionError(f"cannot read ranges from {describe(ranges)}: {error}. Give pairs (low, high).") from error
    if pairs.shape == (2,):
        pairs = pairs.expand(len(names), 2)
    if pairs.shape != (len(names), 2):
        raise OptionError(
            f"ranges of shape {tuple(pairs.shape)} do not fit {len(names)} features: give one pair (low, high), or one "
            "for each feature."
        )
    bad = ~(pairs.isfinite().all(dim=1) & (pairs[:, 0] < pairs[:, 1]))
    if bool(bad.any()):
        place = int(bad.nonzero()[0])
        raise OptionError(f"the range of {names[place]!r} is {tuple(pairs[place].tolist())}; low must be below high.")
    return pairs
