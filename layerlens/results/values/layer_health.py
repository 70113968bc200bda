"""The health of the layers over a data set: which units are dead, saturated or doubles of others."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import OptionError, need, suggestion

from .layer_profile import LayerProfile


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerHealth(LayerProfile):
    """Shares of dead, doubled, saturated, zero and non-finite values for every layer; NaN where a share has no meaning.

    Attributes:
        dead: layer -> its dead units; layers without any are not listed.
        doubles: layer -> `(unit, earlier unit, correlation)` of its units that repeat an earlier one.
        mean: mean of the layer's values, `(layers,)`.
        std: standard deviation of the layer's values, `(layers,)`.
        gradient: norm of the gradient of the score by the layer's output, mean over samples, `(layers,)`; None when
            none was asked for.
        samples: how many samples each layer was seen with, `(layers,)`.
        bound: upper bound of the share of such samples for which a dead unit answers, at 95 % confidence, `(layers,)`.
    """

    dead: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    doubles: dict[str, tuple[tuple[int, int, float], ...]] = dataclasses.field(default_factory=dict)
    mean: torch.Tensor | None = None
    std: torch.Tensor | None = None
    gradient: torch.Tensor | None = None
    samples: torch.Tensor | None = None
    bound: torch.Tensor | None = None

    def of(self, layer: str) -> dict[str, float]:
        """Every number of one layer by name.

        Raises:
            OptionError: when there is no such layer.
        """
        if layer not in self.layers:
            raise OptionError(f"there is no layer {layer!r}.{suggestion(layer, self.layers)}")
        row = self.layers.index(layer)
        return {name: float(column[row]) for name, column in self._columns().items()}

    def _columns(self) -> dict[str, torch.Tensor]:
        shares = dict(zip(self.series, self.values.T, strict=True))
        more = {
            "mean": self.mean,
            "std": self.std,
            "gradient norm": self.gradient,
            "samples": self.samples,
            "bound of dead": self.bound,
        }
        return shares | {name: column for name, column in more.items() if column is not None}

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each layer and a column for each number. pandas must be installed."""
        pandas = need("pandas", "to_pandas")
        return pandas.DataFrame({name: column.numpy() for name, column in self._columns().items()}, list(self.layers))

    def summary(self) -> list[tuple[str, str]]:
        """How many units are dead or doubled, and where most of them are."""
        worst = ", ".join(f"{layer} ({len(units)})" for layer, units in _longest(self.dead))
        twice = ", ".join(f"{layer} ({len(units)})" for layer, units in _longest(self.doubles))
        return [
            ("method", self.method),
            ("layers", str(len(self))),
            ("dead units", worst or "none"),
            ("doubled units", twice or "none"),
        ]


def _longest(units: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(units.items(), key=lambda pair: -len(pair[1]))[:3]
