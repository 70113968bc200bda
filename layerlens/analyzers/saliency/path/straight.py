"""Points on the straight way from a baseline to the input, for methods that read a layer there."""

from __future__ import annotations

import torch

from layerlens.analyzers.common.scorer import Leaves
from layerlens.errors import OptionError
from layerlens.model.layers import Selection


def check_layer(method: str, where: Selection) -> None:
    """Raise an OptionError when no layer was given."""
    if where is None or (isinstance(where, str) and where == "input"):
        raise OptionError(
            f"{method} is about the units of a layer: give where='name of a layer'. For the input itself take "
            "integrated_gradients."
        )


def points(starts: Leaves, ends: Leaves, rows: torch.Tensor, ways: torch.Tensor) -> Leaves:
    """X' + a (x - x') of the samples `rows`, `(ways * rows, ...)` by leaf, way by way.

    Args:
        starts: x' by leaf.
        ends: x by leaf.
        rows: the samples, `(n,)`.
        ways: a, `(ways,)` float64.
    """
    found = {}
    for name, end in ends.items():
        part = ways.to(end.device).reshape(-1, *[1] * end.ndim)
        found[name] = torch.lerp(starts[name][rows].double(), end[rows].double(), part).flatten(0, 1).to(end.dtype)
    return found
