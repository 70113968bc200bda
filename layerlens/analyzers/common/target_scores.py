"""The scores of several targets, read from one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from layerlens.errors import TargetError
from layerlens.inputs.inputs import Inputs
from layerlens.targets.target import Spec, Target, as_target


class TargetScores:
    """The scores of several targets, read from one output.

    Args:
        specs: targets, each as in `as_target`.

    Attributes:
        targets: the targets, resolved once the model has run.
        values: one `(batch,)` for each, once the model has run.

    Raises:
        TargetError: if the targets read different layers.
    """

    def __init__(self, specs: Sequence[Spec]) -> None:
        self.targets: list[Target] = [as_target(spec) for spec in specs]
        self.values: list[torch.Tensor] = []
        self._at = self.targets[0].at
        if any(target.at != self._at for target in self.targets):
            raise TargetError("the targets read different layers; give those of one layer together.")

    def joint_target(self) -> Target:
        """Return one target that scores the output with all of them."""
        return Target(self._score, self._label(), chooser=self._resolve, at=self._at, binder=self._bind)

    def _label(self) -> str:
        return "; ".join(target.label for target in self.targets)

    def _bind(self, inputs: Inputs | None, samples: torch.Tensor | None) -> Target:
        self.targets = [target.on(inputs, samples) for target in self.targets]
        return Target(self._score, self._label(), chooser=self._resolve, at=self._at)

    def _resolve(self, output: object) -> Target:
        self.targets = [target.resolve(output) for target in self.targets]
        return Target(self._score, self._label(), at=self._at)

    def _score(self, output: object, rows: torch.Tensor) -> torch.Tensor:
        for target in self.targets:
            if target.each is not None:
                target.check(len(rows))
        if len(self.targets) == 1:
            return self.targets[0].function(output, rows)  # whose result is checked as that of the joint target
        self.values = [target(output, rows, at=self._at) for target in self.targets]
        return torch.stack(self.values).sum(dim=0)
