"""What a generator makes when single latents are changed."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import OptionError
from layerlens.model.trees import as_array, describe

from ..base import Result


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LatentTraversal(Result):
    """Outputs of a model along directions of its latent space.

    Attributes:
        names: names of the directions, one per row: `"latent 3"`.
        steps: the values that a latent was set to, or how far it was moved, `(step,)`.
        move: `"set"` or `"add"`.
        outputs: `(direction, step, *output)`.
        base: what the latent as it was given makes, `(*output)`.
        effect: how far the output moves along each direction, `(direction,)`: the standard deviation over the steps,
            root mean square over the output's places; in units of the output.
        settings: every option as used.
    """

    names: tuple[str, ...]
    steps: torch.Tensor
    move: str
    outputs: torch.Tensor
    base: torch.Tensor
    effect: torch.Tensor
    settings: dict[str, Any]

    def strongest(self, count: int = 5) -> list[tuple[str, float]]:
        """The directions with the largest effect, with that effect.

        Args:
            count: how many.
        """
        best = self.effect.topk(min(count, len(self.names)))
        return [(self.names[row], value) for value, row in zip(*map(torch.Tensor.tolist, best), strict=True)]

    def row(self, name: str | int) -> int:
        """The row of a direction, by its name or the number of its latent.

        Raises:
            OptionError: when there is none.
        """
        wanted = name if isinstance(name, str) else f"latent {name}"
        if wanted not in self.names:
            raise OptionError(f"there is no direction {wanted!r}; there are {len(self.names)}: {self.names[0]!r}, ...")
        return self.names.index(wanted)

    def numpy(self) -> Any:
        """The outputs as a numpy array."""
        return as_array(self.outputs)

    def summary(self) -> list[tuple[str, str]]:
        """Directions, steps, outputs and the strongest effects."""
        best = ", ".join(f"{name} ({effect:.3g})" for name, effect in self.strongest(3))
        span = f"{self.move} {float(self.steps[0]):.3g} to {float(self.steps[-1]):.3g} in {len(self.steps)}"
        return [
            ("directions", str(len(self.names))), ("steps", span), ("outputs", describe(self.outputs)),
            ("strongest", best),
        ]  # fmt: skip
