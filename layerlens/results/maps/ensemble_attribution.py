"""An attribution over several models: how far they agree on it."""

from __future__ import annotations

import dataclasses

import torch

from ..intervals import intervals_of, joined
from .attribution import Attribution, Values


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EnsembleAttribution(Attribution):
    """The mean attribution over plausible models, and how much it varies from model to model.

    `values` and `score` are means over the models. `standard_error` is what the random draws of the method add to the
    values, the models held fixed; None for a method that draws nothing. More draws of the method make it smaller; they
    do not change `deviation`.

    Attributes:
        deviation: standard deviation of the values over the models, in the form of `values`, without what the draws of
            the method add.
        agreement: share of the models whose value has the sign of the mean, in the form of `values`.
        models: number of models.
    """

    deviation: Values = dataclasses.field(kw_only=True)
    agreement: Values = dataclasses.field(kw_only=True)
    models: int = dataclasses.field(kw_only=True)

    @property
    def how(self) -> str:
        """The method, the layer that it attributes to where that is not the input, and the number of models."""
        return f"{super().how}, mean of {self.models} models"

    def interval(self, share: float = 0.9) -> tuple[Values, Values]:
        """The interval of each value over the models: low and high ends, in the form of `values`.

        It holds the value of another such model, in `share` of cases where values are normal over the models: the mean
        less and plus a quantile of Student's t with models - 1 degrees of freedom, times the square root of
        (1 + 1/models) deviation^2 + standard_error^2.

        Args:
            share: share of the models whose value it should hold, between 0 and 1.

        Raises:
            OptionError: when the share is not between 0 and 1.

        Example:
            >>> one = torch.ones(1, 2)
            >>> a = EnsembleAttribution(2 * one, None, True, "score", "", "", {}, torch.ones(1),
            ...                         deviation=torch.tensor([[1.0, 2.0]]), agreement=one, models=20)
            >>> a.interval(0.9)
            (tensor([[ 0.2282, -1.5437]]), tensor([[3.7718, 5.5437]]))
        """
        errors = joined(torch.zeros_like, self.deviation) if self.standard_error is None else self.standard_error
        both: Values = joined(
            lambda spread, error: ((1 + 1 / self.models) * spread.square() + error.square()).sqrt(),
            self.deviation,
            errors,
        )
        return intervals_of(self.method, self.values, both, self.models - 1, None, share)

    @property
    def has_interval(self) -> bool:
        """Whether the values have an `interval`: they always do."""
        return True

    def summary(self) -> list[tuple[str, str]]:
        """Method, target, shape, score, checks, and what the models are."""
        rows = super().summary()
        settled = self.settled()
        parts = list(settled.values()) if isinstance(settled, dict) else [settled]
        count, total = sum(int(one.sum()) for one in parts), sum(one.numel() for one in parts)
        return [*rows, ("models", f"{self.models}, {self.settings.get('models', '')}"),
                ("settled", f"the sign of {count} of {total} values, by 90 % intervals over the models")]  # fmt: skip
