"""Features that take values from the rows of a data set, each by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch

from layerlens.analyzers.common.features.input_features import Features
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import OptionError, warn

Values = dict[str, torch.Tensor]

FEW_ROWS = 64
"""A distribution of fewer rows than this is told of."""

TOGETHER = 0.8
"""A correlation above which two features should be one group."""


def of_rows(
    whole: Scorer, features: Features, names: tuple[str, ...], spread: bool
) -> tuple[str, Callable[[torch.Tensor, torch.Tensor], Values]]:
    """Each feature by itself takes values that it has in rows of x."""
    batch = len(whole.rows)
    if batch < 2:
        raise OptionError(
            "x holds one sample, which is no distribution. Give more rows, ranges= with (low, high) for the features, "
            "or baseline= to remove parts of this sample."
        )
    if any(len(labels) > 1 for labels in features.labels.values()):
        raise OptionError(
            "these features differ from sample to sample (superpixels, padding), so their values cannot be exchanged "
            "between the rows of x. Give baseline= instead, or labels that all samples share."
        )
    tables = {name: leaf.value.flatten(1) for name, leaf in whole.leaves.items()}  # (rows, values)
    labels = {
        name: features.labels[name].expand(1, *leaf.value.shape[1:]).flatten() for name, leaf in whole.leaves.items()
    }
    _warn_of_rows(tables, labels, names, batch, whole)
    if spread:
        low = {name: table.amin(dim=0) for name, table in tables.items()}
        high = {name: table.amax(dim=0) for name, table in tables.items()}
    else:
        counts = torch.stack([one[one >= 0].bincount(minlength=features.count) for one in labels.values()]).sum(dim=0)
        alone = {name: counts[one.clamp_min(0)] == 1 for name, one in labels.items()}
        # columns by themselves are put in order, so that near numbers of the sequence are near values
        tables = {
            name: torch.where(alone[name], table.sort(dim=0).values, table) if bool(alone[name].any()) else table
            for name, table in tables.items()
        }

    def values(u: torch.Tensor, rows: torch.Tensor) -> Values:
        found = {}
        placed = u if spread else (u * batch).floor().clamp(0, batch - 1)
        for name, one in Features({n: features.labels[n] for n in tables}, features.count).masks(placed, rows).items():
            leaf = whole.leaves[name].value
            wide = one.expand(len(rows), *leaf.shape[1:]).flatten(1)
            if spread:
                value = torch.lerp(low[name].double(), high[name].double(), wide.double())
            else:
                value = tables[name].gather(0, wide.long())
            found[name] = value.to(leaf).reshape(len(rows), *leaf.shape[1:])
        return found

    if spread:
        return f"from the smallest to the largest value in {batch} rows", values
    return f"values of {batch} rows, features drawn independently", values


def _warn_of_rows(tables: Values, labels: Values, names: tuple[str, ...], batch: int, whole: Scorer) -> None:
    """Say what would mislead: few rows, values that no feature holds, features that go together."""
    if batch < FEW_ROWS:
        warn(f"the distribution of the features is that of {batch} rows only; give more, or ranges=.")
    others = {name: tensor for name, tensor in whole.inputs.tensors().items() if tensor.ndim and name not in tables}
    kept = {name: table[:, labels[name] < 0] for name, table in tables.items()} | others
    differing = [name for name, one in kept.items() if one.numel() and bool((one != one[:1]).any())]
    if differing:
        warn(
            f"values of input {', '.join(differing)} that belong to no feature differ between the rows of x; those of "
            "the first row are used throughout.",
        )
    table = torch.cat([one.double() for one in tables.values()], dim=1)
    of = torch.cat(list(labels.values()))
    if not 1 < table.shape[1] <= 1000:
        return
    spread = table.std(dim=0) > 0
    correlation = torch.corrcoef(table[:, spread].T).abs() if int(spread.sum()) > 1 else torch.zeros(1, 1)
    own = of[spread]
    correlation = torch.where((own[:, None] == own) | (own[:, None] < 0) | (own < 0), 0.0, correlation)
    largest = float(correlation.max())
    if batch >= FEW_ROWS and largest > TOGETHER:
        one, other = divmod(int(correlation.argmax()), len(own))
        warn(
            f"{names[int(own[one])]!r} and {names[int(own[other])]!r} go together in the rows of x (correlation "
            f"{largest:.2f}) and are drawn independently here: the model is run on rows unlike any it may have seen. "
            "Put them in one group: features={'both': [...]}.",
        )
