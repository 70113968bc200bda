"""What made a picture of a sampling loop: words, steps and layers, and which word each place of it comes from."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import InputError, choose, need
from layerlens.model.trees import as_array

from ..base import numbers
from ..values.explained import Explained
from ..values.ledger import Ledger
from ..values.matrix import Matrix

KINDS = ("words", "steps", "layers", "change")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SamplingAttribution(Explained):
    """How much of a score of the final picture came from each word, in each step and through each layer.

    The score is the sum of the words, of what the model adds in each step without them (biases, the noise level), of
    the noise that the loop starts from, and of constants of the loop; `ledger` holds every amount.

    Attributes:
        names: the words; those of several prompts as `prompt 1: red`.
        levels: the steps, by their noise level; the calls by number where that is unknown.
        by_step: relevance of each word in each step, `(batch, word, step)`.
        constants: relevance that stayed with the model's own constants in each step, `(batch, step)`.
        inputs: relevance by input of the loop, shaped like it: the noise, and embeddings of the prompt.
        layer_names: layers of the model.
        through: relevance of each layer's output in each step, `(layer, step, 2)`: sum and sum of magnitudes, mean over
            the batch.
        moved: how far each layer's output is from that in the next step, over its norm, `(layer, step)`; NaN in the
            last.
        score: `(batch,)`.
        target: what was scored.
        picture: what the loop returned, `(batch, channel, height, width)`.
        ledger: where relevance ended.
        method: how.
        settings: every option as used.
        maps: relevance of each word for the score of each cell of a grid over the picture,
            `(batch, word, rows, columns)`; None when not asked for.
        cost: runs of the loop.
        explanation: what the numbers mean and what they do not.
    """

    names: tuple[str, ...]
    levels: tuple[str, ...]
    by_step: torch.Tensor
    constants: torch.Tensor
    inputs: dict[str, torch.Tensor]
    layer_names: tuple[str, ...]
    through: torch.Tensor
    moved: torch.Tensor
    score: torch.Tensor
    target: str
    picture: torch.Tensor
    ledger: Ledger
    method: str
    settings: dict[str, Any]
    maps: torch.Tensor | None = None
    cost: str = ""
    explanation: tuple[str, str] = ("", "")

    @property
    def words(self) -> torch.Tensor:
        """Relevance of each word over all steps, `(batch, word)`, in units of the score."""
        return self.by_step.sum(2)

    @property
    def steps(self) -> torch.Tensor:
        """What came into the picture in each step, `(batch, step)`: by words and by constants."""
        return self.by_step.sum(1) + self.constants

    @property
    def layers(self) -> Matrix:
        """The share of each layer in each step: sum of magnitudes of relevance, in percent of the step's."""
        return self.matrix("layers")

    @property
    def which(self) -> torch.Tensor:
        """The word with the largest relevance, of either sign, for each cell of the maps, `(batch, rows, columns)`.

        Raises:
            InputError: when there are no maps.
        """
        return self._maps().abs().argmax(1)

    def map_of(self, word: str, sample: int = 0) -> torch.Tensor:
        """The map of one word, `(rows, columns)`.

        Args:
            word: one of `names`; of a word that occurs twice all of its places.
            sample: which sample.

        Raises:
            OptionError: when there is no such word.
            InputError: when there are no maps.
        """
        known = {name: [k for k, one in enumerate(self.names) if one == name] for name in self.names}
        return self._maps()[sample, known[choose("word", word, known)]].sum(0)

    def _maps(self) -> torch.Tensor:
        if self.maps is None:
            raise InputError("no maps were asked for: explain_sampling(..., maps=8) makes them on a grid of 8 x 8.")
        return self.maps

    def matrix(self, of: str = "words", sample: int | None = None) -> Matrix:
        """One table of the result, to draw or to save.

        Args:
            of: `"words"` x steps, `"steps"` (words, constants), `"layers"` x steps (relevance, in percent of each
                step), or `"change"` of the layers' outputs from step to step.
            sample: which sample; None is the mean.

        Raises:
            OptionError: when there is no such table.
        """
        choose("table of=", of, KINDS)

        def of_sample(values: torch.Tensor) -> torch.Tensor:
            return values.mean(0) if sample is None else values[sample]

        units, signed, rows = "score", True, self.names
        if of == "words":
            quantity, values = "relevance", of_sample(self.by_step)
        elif of == "steps":
            rows, quantity = ("words", "constants"), "relevance"
            values = torch.stack([of_sample(self.by_step.sum(1)), of_sample(self.constants)])
        elif of == "layers":
            rows, units, signed, quantity = self.layer_names, "%", False, "share of relevance"
            values = 100 * self.through[..., 1] / self.through[..., 1].sum(0).clamp_min(1e-30)
        else:
            rows, units, signed, quantity, values = self.layer_names, "1", False, "change of output", self.moved
        axes = ("source" if of == "steps" else "word" if of == "words" else "layer", "step")
        names = _distinct(rows) if of == "words" else rows
        return Matrix(quantity, names, self.levels, values, axes, units, signed, self.method, self.settings,
                      explanation=self.explanation)  # fmt: skip

    def ranked(self, sample: int = 0) -> list[tuple[str, float]]:
        """(word, relevance), largest first, by size."""
        pairs = zip(self.names, self.words[sample].tolist(), strict=True)
        return sorted(pairs, key=lambda pair: -abs(pair[1]))

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each sample, word and step."""
        pandas = need("pandas", "to_pandas")
        rows = [
            (sample, place, name, level, float(self.by_step[sample, place, step]))
            for sample in range(len(self.score))
            for place, name in enumerate(self.names)
            for step, level in enumerate(self.levels)
        ]
        return pandas.DataFrame(rows, columns=["sample", "place", "word", "step", "relevance"])

    def numpy(self) -> Any:
        """Relevance of each word in each step, as a numpy array."""
        return as_array(self.by_step)

    def summary(self) -> list[tuple[str, str]]:
        """The score, the largest words, the largest steps, and what belongs to neither."""
        steps = self.steps.mean(0)
        largest = steps.abs().topk(min(3, len(steps))).indices.tolist()
        known = [("target", self.target), ("score", numbers(self.score))]
        if self.names:
            known.append(("words", ", ".join(f"{name!r} ({value:.4g})" for name, value in self.ranked()[:3])))
        known.append(("steps", ", ".join(f"{self.levels[k]} ({float(steps[k]):.4g})" for k in largest)))
        known.append(("noise level", self.settings.get("level", "unknown")))
        first = next(iter(self.inputs), None)
        if first is not None:
            known.append(("noise", numbers(self.inputs[first].flatten(1).sum(1))))
        known.append(("relative residual", numbers(self.ledger.relative)))
        known.append(
            ("maps", "none; maps=8 makes them" if self.maps is None else f"{tuple(self.maps.shape[2:])} cells")
        )
        return known


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names with their number where they occur more than once."""
    return tuple(name if names.count(name) == 1 else f"{name} ({names[: k + 1].count(name)})"
                 for k, name in enumerate(names))  # fmt: skip
