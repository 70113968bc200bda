"""What a step of an optimizer does to the parameters of each layer."""

from __future__ import annotations

import torch
from torch import nn

from .layer_statistics import norms


class Moves:
    """Norms of gradients, weights and updates by layer.

    Args:
        parameters: path of a layer -> its own parameters.
    """

    def __init__(self, parameters: dict[str, list[nn.Parameter]]) -> None:
        self._parameters = parameters
        self._before: dict[str, list[torch.Tensor]] = {}

    @property
    def begun(self) -> bool:
        """Whether a step is being measured."""
        return bool(self._before)

    @torch.no_grad()
    def begin(self) -> None:
        """Remember the parameters before a step."""
        self._before = {path: [one.detach().clone() for one in own] for path, own in self._parameters.items()}

    @torch.no_grad()
    def gradients(self) -> dict[str, float]:
        """||dL/dW|| by layer; NaN where there is no gradient."""
        found = {
            path: [one.grad.coalesce().values() if one.grad.is_sparse else one.grad for one in own
                   if one.grad is not None]
            for path, own in self._parameters.items()
        }  # fmt: skip
        return dict(zip(found, norms(found).tolist(), strict=True))

    @torch.no_grad()
    def end(self) -> tuple[dict[str, float], dict[str, float]]:
        """||W|| before the step, and ||W' - W|| / ||W||, by layer."""
        before, self._before = self._before, {}
        moved = {
            path: [new.detach() - old for new, old in zip(self._parameters[path], own, strict=True)]
            for path, own in before.items()
        }
        sizes, change = norms(before), norms(moved)
        ratio = torch.where(change == 0, 0.0, change / sizes)
        return dict(zip(moved, sizes.tolist(), strict=True)), dict(zip(moved, ratio.tolist(), strict=True))

    def forget(self) -> None:
        """Let go of what is remembered."""
        self._before = {}
