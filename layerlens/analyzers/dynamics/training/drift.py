"""How far the layers' outputs for fixed samples have moved since the start of a training."""

from __future__ import annotations

import torch

from layerlens.analyzers.common.features.layer_features import FeatureReader
from layerlens.errors import InputError
from layerlens.inputs.inputs import Input, as_inputs

from ..similarity.similarity_measures import gram, unbiased

FEWEST = 8
"""Samples below which the debiased CKA says nothing."""


class Drift:
    """Compares the layers on some samples with the layers at the start.

    Raises:
        InputError: when the data cannot be read, or holds too few samples.
    """

    def __init__(self, reader: FeatureReader, data: Input) -> None:
        self.reader, self.inputs = reader, as_inputs(data)
        if self.inputs.batch < FEWEST:
            raise InputError(f"the drift needs at least {FEWEST} samples, got {self.inputs.batch}.")
        self._start: dict[str, torch.Tensor] = {}

    def begin(self) -> None:
        """Remember the layers as they are."""
        self._start = self._vectors()

    def now(self) -> dict[str, float]:
        """Return 1 - debiased linear CKA of each layer with the start; NaN where it is constant over the samples."""
        found = {}
        for name, now in self._vectors().items():
            start = self._start.get(name)
            if start is not None:
                size = float(now.norm() * start.norm())
                found[name] = 1 - float(now @ start) / size if size > 0 else float("nan")
        return found

    def _vectors(self) -> dict[str, torch.Tensor]:
        return {name: unbiased(gram(rows)) for name, rows in self.reader.read(self.inputs).layers.items()}
