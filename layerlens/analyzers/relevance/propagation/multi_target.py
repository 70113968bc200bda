"""Several targets read from one output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerlens.errors import TargetError
from layerlens.targets.target import Spec, Target, as_target


class Several:
    """Targets that are scored together, with the score of each kept.

    Args:
        specs: each as in `as_target`.

    Attributes:
        targets: as resolved on the output.
        scores: one `(batch,)` for each, once the model has run.
    """

    def __init__(self, specs: Sequence[Spec]) -> None:
        self.targets: list[Target] = [as_target(spec) for spec in specs]
        self.scores: list[torch.Tensor] = []
        self.at = self.targets[0].at
        if any(target.at != self.at for target in self.targets):
            raise TargetError("the targets read different layers; give those of one layer together.")

    def target(self) -> Target:
        """What to score the output with: all of them."""
        return Target(self._score, self._label(), chooser=self._resolve, at=self.at)

    def _label(self) -> str:
        return "; ".join(target.label for target in self.targets)

    def _resolve(self, output: Any) -> Target:
        self.targets = [target.resolve(output) for target in self.targets]
        return Target(self._score, self._label(), at=self.at)

    def _score(self, output: Any, rows: torch.Tensor) -> torch.Tensor:
        for target in self.targets:
            target.check(len(rows))
        self.scores = [target(output, rows, at=self.at) for target in self.targets]
        return self.scores[0] if len(self.scores) == 1 else torch.stack(self.scores).sum(dim=0)
