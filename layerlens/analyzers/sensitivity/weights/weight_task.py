"""What all measures of weights are given."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from layerlens.inputs.inputs import Forward

from .labelled_batches import Samples
from .likelihood import Kind
from .parameter_owners import Owners


@dataclasses.dataclass(frozen=True)
class Job:
    """What all measures are given; see `weight_sensitivity`."""

    model: nn.Module
    samples: Samples
    owners: Owners
    likelihood: Kind
    null: bool
    seed: int
    progress: bool | None
    forward: Forward | None

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """Those of the rows, by name."""
        names = set(self.owners.names)
        return {name: tensor for name, tensor in self.model.named_parameters() if name in names}

    @property
    def counts(self) -> torch.Tensor:
        """How many numbers each row holds."""
        own = self.parameters
        return torch.tensor([sum(own[name].numel() for name in names) for names in self.owners.rows.values()])

    def settings(self, **more: Any) -> dict[str, Any]:
        """For the result."""
        return {
            **more,
            "seed": self.seed,
            "shared": {name: tuple(others) for name, others in self.owners.shared.items()},
            "left_out": dict(self.owners.left_out),
        }

    @property
    def told(self) -> str:
        """What is shared, for the method."""
        shared = [f"{name} with {', '.join(others)}" for name, others in self.owners.shared.items()]
        return f"; shared parameters counted once ({'; '.join(shared[:3])})" if shared else ""
