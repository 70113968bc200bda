"""What happened in each layer while a model was trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import OptionError, choose, need
from layerlens.model.trees import as_array

from .explained import Explained
from .matrix import Matrix

UNITS = {
    "gradient norm": "units of the loss per unit of weight",
    "weight norm": "units of the weights",
    "update ratio": "1",
    "constant units": "share of units",
    "zeros": "share of values",
    "activation mean": "units of the layer",
    "activation std": "units of the layer",
    "drift": "1 - CKA with the start",
}
"""What is recorded of a layer, and its units."""

HIGH, LOW = 0.1, 1e-6
"""Update ratios outside of these are named."""

VANISHING = 1e-4
"""A gradient norm below this part of the largest layer's is named."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TrainingHistory(Explained):
    """Numbers of every layer at some steps of a training.

    Attributes:
        steps: steps of the optimizer at which layers were measured, `(n,)`, counted from 0.
        layers: quantity -> the layers it was measured at, in order of execution; of definition where that is unknown.
        values: quantity -> `(n, layers)`; NaN where there is no number.
        logged: name -> `(m, 2)`: step and value of what the training loop logged, such as the loss.
        rows: samples whose activations were seen at a step, `(n,)`; shares of constant units depend on it.
        method: how it was measured.
        settings: every option as used.
        checks: `"share of time"`: what watching took of the time between its start and its end, and `"steps seen"`.
        explanation: what the numbers mean and what they do not, a sentence each.
    """

    steps: torch.Tensor
    layers: dict[str, tuple[str, ...]]
    values: dict[str, torch.Tensor]
    logged: dict[str, torch.Tensor]
    rows: torch.Tensor
    method: str
    settings: dict[str, Any]
    checks: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    explanation: tuple[str, str] = ("", "")

    def of(self, quantity: str) -> Matrix:
        """One quantity, a row for each layer and a column for each step.

        Raises:
            OptionError: when it was not recorded.
        """
        choose("quantity", quantity, self.values)
        return Matrix(
            quantity=quantity,
            rows=self.layers[quantity],
            columns=tuple(map(str, self.steps.tolist())),
            values=self.values[quantity].T.contiguous(),
            axes=("layer", "step"),
            units=UNITS[quantity],
            signed=quantity == "activation mean",
            method=self.method,
            settings=self.settings,
            explanation=self.explanation,
        )

    def curve(self, quantity: str, layer: str) -> torch.Tensor:
        """One quantity of one layer over the measured steps, `(n,)`.

        Raises:
            OptionError: when there is no such quantity or layer.
        """
        choose("quantity", quantity, self.values)
        return self.values[quantity][:, self.layers[quantity].index(choose("layer", layer, self.layers[quantity]))]

    def findings(self, last: int = 3) -> list[str]:
        """What stands out at the end, in words, a sentence for each kind; empty when nothing does.

        Named are layers without gradient, with numbers that are not finite, with constant units, with gradients far
        below the others', and with updates that are very large or very small for their weights.

        Args:
            last: how many of the last measured steps are looked at (medians over them).

        Raises:
            OptionError: when `last` is below 1.
        """
        if last < 1:
            raise OptionError(f"last={last!r}: at least one step is needed.")
        sentences = []
        for quantity, values in self.values.items():
            bad = ((~values.isfinite()) & ~values.isnan()).any(dim=0) | self._became_nan(quantity)
            sentences += self._sentence(quantity, bad, f"{quantity} that is not finite")
        middle = {name: values[-last:].nanmedian(dim=0).values for name, values in self.values.items()}
        if "gradient norm" in middle:
            norms = middle["gradient norm"]
            sentences += self._sentence("gradient norm", norms == 0, "no gradient")
            small = (norms > 0) & (norms < VANISHING * norms.nan_to_num(0, 0, 0).max())
            sentences += self._sentence(
                "gradient norm", small, f"a gradient below {VANISHING:g} of the largest layer's", norms
            )
        if "update ratio" in middle:
            ratio = middle["update ratio"]
            sentences += self._sentence("update ratio", ratio > HIGH, f"updates above {HIGH:g} of the weights", ratio)
            sentences += self._sentence("update ratio", ratio < LOW, f"updates below {LOW:g} of the weights", ratio)
        if "constant units" in middle:
            share = middle["constant units"]
            text = f"units that are the same for all of the {int(self.rows[-1])} samples of a step"
            sentences += self._sentence("constant units", share > 0, text, share)
        return sentences

    def _became_nan(self, quantity: str) -> torch.Tensor:
        """Layers whose last number is NaN although one before it was not."""
        values = self.values[quantity]
        return values[-1].isnan() & (~values.isnan()).any(dim=0) & (quantity != "drift")

    def _sentence(self, quantity: str, where: torch.Tensor, what: str, values: torch.Tensor | None = None) -> list[str]:
        rows = where.nonzero().flatten().tolist()
        if not rows:
            return []
        names = self.layers[quantity]
        if values is not None:
            rows.sort(key=lambda row: -abs(float(values[row])))
        listed = [names[row] + ("" if values is None else f" ({float(values[row]):.2g})") for row in rows[:5]]
        more = f", ... ({len(rows)} layers)" if len(rows) > 5 else ""
        return [f"{what[0].upper()}{what[1:]}: {', '.join(listed)}{more}."]

    def to_pandas(self) -> Any:
        """A pandas DataFrame with the columns step, quantity, layer and value. pandas must be installed."""
        pandas = need("pandas", "to_pandas")
        rows = [
            (step, quantity, layer, value)
            for quantity, values in self.values.items()
            for step, line in zip(self.steps.tolist(), values.tolist(), strict=True)
            for layer, value in zip(self.layers[quantity], line, strict=True)
        ]
        return pandas.DataFrame(rows, columns=["step", "quantity", "layer", "value"])

    def __len__(self) -> int:
        return len(self.steps)

    def numpy(self) -> Any:
        """Each quantity, `(steps, layers)`, as a numpy array."""
        return {name: as_array(values) for name, values in self.values.items()}

    def summary(self) -> list[tuple[str, str]]:
        """Steps, what was recorded, the cost, and what stands out."""
        seen = int(self.checks["steps seen"]) if "steps seen" in self.checks else 0
        rows = [("steps", f"{len(self)} measured of {seen}"), ("quantities", ", ".join(self.values))]
        if "share of time" in self.checks:
            rows.append(("time", f"{100 * float(self.checks['share of time']):.1f} % of the training"))
        return [*rows, *(("found", sentence) for sentence in (self.findings() if len(self) else []))]
