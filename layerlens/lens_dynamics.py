"""How layers transform data, bound to a model; `Lens` is one of these."""

from __future__ import annotations

from typing import Any

import torch

from .analyzers import dynamics
from .layers import Selection
from .wrapped import WrappedModel


class DynamicsLens(WrappedModel):
    """What the layers of a model make of a data set, and what training makes of them, see `Lens`."""

    def watch(
        self, optimizer: torch.optim.Optimizer | None = None, layers: Selection = None, **options: Any
    ) -> dynamics.Watch:
        """Look on while your own loop trains the model: `with lens.watch(optimizer) as watching: ...`; see `watch`."""
        if options.get("data") is not None:
            options["data"] = self.inputs(options["data"])
        return dynamics.watch(self.model, optimizer, layers, forward=self.forward, **options)
