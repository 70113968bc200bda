"""A borrowed model with its input, and how it is run: what every measure passes on."""

from __future__ import annotations

import dataclasses

from torch import nn

from layerlens.inputs.inputs import Forward, Inputs


@dataclasses.dataclass(frozen=True)
class ModelRun:
    """A borrowed model, its input, and the options that every run of it needs.

    Attributes:
        model: a borrowed model.
        inputs: its input.
        forward: `forward(model, *args, **kwargs)` to call instead of the model.
        seed: seed of every run, for models that draw numbers.
        progress: see `track`.
    """

    model: nn.Module
    inputs: Inputs
    forward: Forward | None
    seed: int
    progress: bool | None = None

    @property
    def batch(self) -> int:
        """The number of samples."""
        return self.inputs.batch
