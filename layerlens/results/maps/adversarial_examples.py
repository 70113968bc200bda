"""Inputs that an attack changed, and what the model makes of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import need
from layerlens.model.trees import as_array

from ..base import Result, numbers
from .attribution import Values


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AdversarialExamples(Result):
    """Inputs that an attack changed.

    Attributes:
        inputs: the changed inputs, `(batch, ...)`; a dict by name for several. Of token ids, their embeddings.
        original: the inputs as they were, in the same way.
        eps: size of the change that each sample was allowed, `(batch,)`; infinity where no size changed the answer.
        success: whether the answer was changed, the class reached, or the threshold passed, bool `(batch,)`; None for a
            score without a threshold.
        before: the class that the model gives to each sample, `(batch,)`, or its score.
        after: class or score of the changed sample.
        loss: the loss that the attack raised, `(batch,)`, after it.
        goal: what was attacked.
        method: the attack.
        settings: every option as used.
    """

    inputs: Values
    original: Values
    eps: torch.Tensor
    success: torch.Tensor | None
    before: torch.Tensor
    after: torch.Tensor
    loss: torch.Tensor
    goal: str
    method: str
    settings: dict[str, Any]

    @property
    def change(self) -> Values:
        """The changed inputs less the original ones."""
        if isinstance(self.inputs, dict) and isinstance(self.original, dict):
            return {name: one - self.original[name] for name, one in self.inputs.items()}
        assert isinstance(self.inputs, torch.Tensor) and isinstance(self.original, torch.Tensor)
        return self.inputs - self.original

    def numpy(self) -> Any:
        """The changed inputs as a numpy array, or as a dict of arrays."""
        if isinstance(self.inputs, torch.Tensor):
            return as_array(self.inputs)
        return {name: as_array(values) for name, values in self.inputs.items()}

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each sample: size, success, and the answers before and after.

        Raises:
            MissingPackage: when pandas is not installed.
        """
        columns = {"eps": self.eps, "success": self.success, "before": self.before, "after": self.after}
        columns["loss"] = self.loss
        return need("pandas", "to_pandas").DataFrame(
            {name: as_array(values) for name, values in columns.items() if values is not None}
        )

    def __len__(self) -> int:
        return len(self.eps)

    def summary(self) -> list[tuple[str, str]]:
        """Attack, goal, how many succeeded, and sizes."""
        rows = [("attack", self.method), ("goal", self.goal), ("eps", numbers(self.eps))]
        if self.success is not None:
            rows.append(("changed", f"{int(self.success.sum())} of {len(self)} samples"))
        return [*rows, ("before", numbers(self.before)), ("after", numbers(self.after))]
