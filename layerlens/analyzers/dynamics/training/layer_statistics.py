"""Numbers of one training step: what a layer returned, and how its parameters were moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from layerlens.axes.names import unit_axis
from layerlens.model.trees import first_tensor

HEALTH = ("constant units", "zeros", "activation mean", "activation std")


@dataclasses.dataclass
class Sums:
    """What the calls of a layer in one step add up to; small tensors on the layer's device, read at the end.

    Attributes:
        low: the smallest value of each unit so far; None where calls have different units.
        high: the largest.
        zeros: how many values were 0.
        mean: of all values, float64.
        spread: the sum of squared differences from it, float64.
        count: of values.
        rows: samples, of the first call.
    """

    low: torch.Tensor | None
    high: torch.Tensor | None
    zeros: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor
    count: int
    rows: int

    def add(self, other: Sums) -> None:
        """Take another call of the same step."""
        if self.low is not None and self.high is not None and other.low is not None and other.high is not None:
            same = self.low.shape == other.low.shape
            self.low = torch.minimum(self.low, other.low) if same else None
            self.high = torch.maximum(self.high, other.high) if same else None
        whole = self.count + other.count
        apart = other.mean - self.mean  # Chan, Golub & LeVeque 1983, eq. 2.1
        self.spread = self.spread + other.spread + apart.square() * (self.count * other.count / whole)
        self.mean = self.mean + apart * (other.count / whole)
        self.zeros, self.count = self.zeros + other.zeros, whole

    def numbers(self) -> dict[str, float]:
        """By quantity."""
        constant = float("nan")
        if self.low is not None and self.high is not None:
            constant = float((self.low == self.high).double().mean())
        found = (constant, float(self.zeros) / self.count, float(self.mean), float((self.spread / self.count).sqrt()))
        return dict(zip(HEALTH, found, strict=True))


def sums_of(module: nn.Module, output: Any) -> Sums | None:
    """What one call of a layer adds; None when it returned no floating-point tensor with a batch axis."""
    tensor = first_tensor(output)
    if tensor is None or not tensor.is_floating_point() or tensor.ndim < 1 or not tensor.numel():
        return None
    values = tensor.detach()
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    axis = unit_axis(module, tensor)
    count, others = wide.numel(), [place for place in range(wide.ndim) if place != axis]
    several = count > wide.shape[axis]
    low, high = (wide.amin(others), wide.amax(others)) if several else (None, None)
    mean = wide.mean()
    spread = (wide - mean).square_().mean() * count  # a tenth of the time of var_mean on a CPU
    zeros = count - torch.count_nonzero(values)
    return Sums(low, high, zeros, mean.double(), spread.double(), count, len(tensor))


def owners(model: nn.Module, parameters: Iterable[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
    """Path of a module -> its own parameters among `parameters`; a shared one belongs to the first that has it."""
    wanted = {id(parameter) for parameter in parameters}
    found: dict[str, list[nn.Parameter]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in wanted:
                wanted.discard(id(parameter))
                found.setdefault(path or "(model)", []).append(parameter)
    return found


def norms(groups: Mapping[str, list[torch.Tensor]]) -> torch.Tensor:
    """The Euclidean norm of all tensors of each group together, `(groups,)`; NaN where there are none."""
    found = []
    for tensors in groups.values():
        parts = [torch.linalg.vector_norm(part.detach(), dtype=torch.promote_types(part.dtype, torch.float32)).cpu()
                 for part in tensors]  # fmt: skip
        found.append(torch.stack([part.double() for part in parts]).norm() if parts else torch.tensor(float("nan")))
    return torch.stack([norm.double() for norm in found])
