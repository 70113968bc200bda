"""How layers transform data, bound to a model; `Lens` is one of these."""

from __future__ import annotations

from .wrapped import WrappedModel


class DynamicsLens(WrappedModel):
    """What the layers of a model make of a data set, see `Lens`."""
