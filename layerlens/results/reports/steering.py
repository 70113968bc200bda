"""What a direction added at a layer changes: what was wanted, and what else."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import need

from ..values.curve import Curve
from ..values.explained import Explained


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Steering(Explained):
    """A direction added at a layer, for several strengths, next to random directions of the same length.

    Attributes:
        layer: the layer whose output was changed.
        direction: what was added at strength 1, `(units,)` float64.
        typical: median length of the layer's output at the places of the neutral inputs, in its units.
        strengths: `(strengths,)`.
        effect: change of the score on x; without a target divergence of the output, `(strengths,)`.
        effect_random: the same by random directions, `(strengths, draws)`.
        side_effect: divergence of the output on neutral inputs, `(strengths,)`.
        side_effect_random: the same by random directions, `(strengths, draws)`.
        norm_ratio: median length of the layer's output after the change, relative to before, `(strengths,)`.
        units: units of the effect, and of the side effect.
        target: what the effect is of.
        plain: the text without a change; `""` where none was generated.
        texts: the text at each strength.
        text_random: the text with a random direction at the largest strength.
        perplexity: perplexity of the neutral texts: without a change, then at each strength, `(1 + strengths,)`; empty
            for other models.
        perplexity_random: the same by random directions, `(strengths, draws)`.
        method: where the direction came from.
        settings: every option as used.
        explanation: what the numbers mean and what they do not, a sentence each.
    """

    layer: str
    direction: torch.Tensor
    typical: float
    strengths: torch.Tensor
    effect: torch.Tensor
    effect_random: torch.Tensor
    side_effect: torch.Tensor
    side_effect_random: torch.Tensor
    norm_ratio: torch.Tensor
    units: tuple[str, str]
    target: str
    plain: str
    texts: tuple[str, ...]
    text_random: str
    perplexity: torch.Tensor
    perplexity_random: torch.Tensor
    method: str
    settings: dict[str, Any]
    explanation: tuple[str, str] = ("", "")

    def specific(self) -> torch.Tensor:
        """Whether the effect is larger than that of every random direction of the same length, `(strengths,)`."""
        return self.effect.abs() > self.effect_random.abs().amax(dim=1)

    def curve(self) -> Curve:
        """The effect by strength, with that of random directions."""
        what = f"change of {self.target}" if self.settings["target"] else f"change of {self.target} on x"
        return self._curve(what, self.units[0], self.effect, self.effect_random)

    def side_effects(self) -> Curve:
        """The divergence of the output on neutral inputs by strength, with that of random directions."""
        return self._curve("change on neutral inputs", self.units[1], self.side_effect, self.side_effect_random)

    def _curve(self, quantity: str, units: str, own: torch.Tensor, others: torch.Tensor) -> Curve:
        order = self.strengths.argsort()
        draws = others.shape[1]
        spread = others.std(dim=1) / draws**0.5 if draws > 1 else torch.zeros(len(others), dtype=torch.float64)
        values = torch.stack([own, others.mean(dim=1)])[:, order]
        error = torch.stack([torch.zeros_like(spread), spread])[:, order]
        along = "strength" + ("" if self.settings["absolute"] else ", in typical lengths of the output")
        return Curve(quantity, along, self.strengths[order], (self.method, "random directions"), values, units,
                     f"steering {self.layer}", self.settings, error, explanation=self.explanation)  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """A row for each strength: effects, side effects, their means over random directions, and the text."""
        rows = []
        for k, strength in enumerate(self.strengths.tolist()):
            row = {"strength": strength, "effect": float(self.effect[k]), "random": float(self.effect_random[k].mean()),
                   "side effect": float(self.side_effect[k]), "random side": float(self.side_effect_random[k].mean()),
                   "norm ratio": float(self.norm_ratio[k]), "specific": bool(self.specific()[k])}  # fmt: skip
            if len(self.perplexity):
                row["perplexity"] = float(self.perplexity[1 + k])
                row["random perplexity"] = float(self.perplexity_random[k].mean())
            rows.append(row | ({"text": self.texts[k]} if self.texts else {}))
        return rows

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame."""
        return need("pandas", "to_pandas").DataFrame(self.rows())

    def numpy(self) -> Any:
        """The effect at each strength as a numpy array."""
        return self.effect.numpy()

    def summary(self) -> list[tuple[str, str]]:
        """Where and what was added, the effect next to random directions, and the texts."""
        last = int(self.strengths.abs().argmax())
        pairs = [
            ("effect", self.effect, self.effect_random),
            ("side effect", self.side_effect, self.side_effect_random),
        ]
        rows = [("layer", self.layer), ("direction", self.method)]
        for (name, own, others), units in zip(pairs, self.units, strict=True):
            text = f"{float(own[last]):.3g} {units} at strength {float(self.strengths[last]):g}"
            rows.append((name, f"{text} (random directions: {float(others[last].mean()):.3g})"))
        if len(self.perplexity):
            rows.append(("perplexity", f"{float(self.perplexity[0]):.4g} to {float(self.perplexity[1 + last]):.4g}"))
        if self.texts:
            rows += [("plain", repr(self.plain[:100])), ("steered", repr(self.texts[last][:100]))]
        return rows
