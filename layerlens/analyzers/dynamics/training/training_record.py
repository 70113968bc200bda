"""The numbers of a watched training, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from layerlens.errors import OptionError
from layerlens.model.selection import split_tensor
from layerlens.results import TrainingHistory

EXPLANATION = (
    "Each value is one layer's gradient, update or activation at one step of the training, on the batch of that step.",
    "It is a sample of the steps of one run: constant units depend on how many samples a step sees, and a small "
    "gradient does not say that a layer is unimportant.",
)


class TrainingRecord:
    """Numbers by quantity, step and layer.

    Args:
        paths: paths of the layers of the model, in the order of their definition.
    """

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.steps: list[int] = []
        self._paths = {path: place for place, path in enumerate(paths)}
        self._rows: list[int] = []
        self._found: dict[str, list[dict[str, float]]] = {}
        self._logged: dict[str, list[tuple[int, float]]] = {}

    def note(self, quantity: str, values: dict[str, float]) -> None:
        """Add a quantity of the step being measured, by layer; the last one counts when a step is repeated."""
        series = self._found.setdefault(quantity, [])
        del series[len(self.steps) :]
        series.append(values)

    def close(self, step: int, rows: int) -> None:
        """Finish a step, in which `rows` samples were seen."""
        self.steps.append(step)
        self._rows.append(rows)

    def log(self, name: str, step: int, value: Any) -> None:
        """Add a number of the training loop.

        Raises:
            OptionError: when it is not a single number.
        """
        try:
            number = float(value.detach() if isinstance(value, torch.Tensor) else value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise OptionError(f"log({name}=...) takes one number, got {value!r}.") from error
        self._logged.setdefault(name, []).append((step, number))

    def history(
        self,
        place: Callable[[str], int],
        *,
        method: str,
        settings: dict[str, Any],
        checks: dict[str, torch.Tensor],
    ) -> TrainingHistory:
        """Return all numbers so far, of layers in the order of their `place`, then of their definition."""

        def order(name: str) -> tuple[int, int]:
            path = split_tensor(name.split(" #")[0], self._paths)[0]
            return place(path), self._paths.get(path, 0)

        count, layers, values = len(self.steps), {}, {}
        for quantity, found in self._found.items():
            names = list(dict.fromkeys(name for step in found for name in step))
            names.sort(key=order)
            table = [[step.get(name, float("nan")) for name in names] for step in found[:count]]
            layers[quantity] = tuple(names)
            values[quantity] = torch.tensor(table, dtype=torch.float64).reshape(count, len(names))
        return TrainingHistory(
            steps=torch.tensor(self.steps, dtype=torch.int64),
            layers=layers,
            values=values,
            logged={name: torch.tensor(rows, dtype=torch.float64) for name, rows in self._logged.items()},
            rows=torch.tensor(self._rows, dtype=torch.int64),
            method=method,
            settings=settings,
            checks=checks,
            explanation=EXPLANATION,
        )
