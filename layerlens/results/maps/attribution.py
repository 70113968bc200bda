"""Results that put a number on every place of the input or of a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from layerlens.errors import InputError
from layerlens.model.tensors import ByTensor
from layerlens.model.trees import as_array, describe

from ..arithmetic import combined
from ..base import Result, numbers
from ..tables import rows
from ..values.layer_profile import LayerProfile
from ..values.ledger import Ledger
from .token_spans import Group, Span, join, span_groups, sums, word_groups

Values = torch.Tensor | dict[str, torch.Tensor]
"""One tensor, or one by name for a model with several inputs."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """How much each place of the input contributed to the score.

    Attributes:
        values: shaped like the input, `(batch, ...)`; `(batch, token)` for token ids; a dict by input name when the
            model takes several.
        axes: names of the axes, where known.
        signed: whether negative values have a meaning (evidence against); False for maps of magnitude.
        units: what a value is, for example `"score"` when the values of a sample add up to a part of its score.
        target: what was scored.
        method: how.
        settings: every option of the method as used.
        score: the score of each sample, `(batch,)`.
        checks: what the method can prove about itself, each `(batch,)`, for example `"completeness gap"`.
        inputs: the input, in the same form as `values` where it has the same axes; None where it is not kept.
        tokens: the text of each token, when known.
        targets: what was scored, sample by sample, where that differs.
        standard_error: standard error of the values, in the same form, if they are a mean over random draws.
        cost: what the method takes for a sample, in forward passes or gradients; empty if unknown.
    """

    values: Values
    axes: tuple[str, ...] | None
    signed: bool
    units: str
    target: str
    method: str
    settings: dict[str, Any]
    score: torch.Tensor
    checks: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    inputs: Values | None = None
    tokens: list[list[str]] | None = None
    targets: tuple[str, ...] | None = None
    standard_error: Values | None = None
    cost: str = ""

    def target_of(self, sample: int) -> str:
        """What was scored for one sample."""
        return self.target if self.targets is None else self.targets[sample]

    @property
    def how(self) -> str:
        """The method, and the layer that it attributes to where that is not the input."""
        where = self.settings.get("where")
        return self.method if where is None else f"{self.method} at {where}"

    @property
    def tensor(self) -> torch.Tensor:
        """The values of a model with one input.

        Raises:
            InputError: when there are several; take one from `.values` by its name.
        """
        if isinstance(self.values, torch.Tensor):
            return self.values
        raise InputError(f"there are values for several inputs: {', '.join(self.values)}. Take one: .values[name]")

    def numpy(self) -> Any:
        """The values as a numpy array, or as a dict of arrays; bfloat16 becomes float32."""
        if isinstance(self.values, torch.Tensor):
            return as_array(self.values)
        return {name: as_array(values) for name, values in self.values.items()}

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each value: input where there are several, sample, place, token, value."""
        return rows(self.values, self.axes, self.tokens)

    def __add__(self, other: object) -> Attribution:
        """The sum with another attribution of the same inputs in the same units, as of the sum of both targets.

        Checks, standard errors and what belongs to a method alone are left out.

        Raises:
            InputError: when inputs, shapes, units, layers or signs do not agree.
        """
        return combined(Attribution, self, other, "+") if isinstance(other, Attribution) else NotImplemented

    def __sub__(self, other: object) -> Attribution:
        """The difference from another attribution of the same inputs in the same units; see `+`.

        Of two targets of a method that is linear in the score it is the attribution of their difference; of two
        methods it shows where they differ.
        """
        return combined(Attribution, self, other, "-") if isinstance(other, Attribution) else NotImplemented

    def by_word(self) -> Attribution:
        """The sums over the tokens of each word, `(batch, word)`, with the words as `tokens`.

        A word begins where the tokenizer says so (a leading `Ġ`, `▁`, space, or no `##`); punctuation and special
        tokens are words themselves. Shorter texts of a batch get zeros and empty words at their end.

        Raises:
            InputError: when the values are not one number per token, or the texts of the tokens are not known.

        Warns:
            UserWarning: when no token says where a word begins, so that each counts as one.

        Example:
            >>> values = torch.tensor([[1.0, 2.0, 3.0]])
            >>> a = Attribution(values, ("batch", "token"), True, "score", "", "", {}, torch.ones(1),
            ...                 tokens=[["The", "Ġcap", "ital"]])
            >>> a.by_word().tokens, a.by_word().tensor
            ([['The', 'capital']], tensor([[1., 5.]]))
        """
        values = self._per_token()
        if self.tokens is None:
            raise InputError("the texts of the tokens are not known: Lens(model, tokenizer=...), or .by_span(spans).")
        return self._summed("word", values, [word_groups(row) for row in self.tokens])

    def by_span(self, spans: Sequence[Span]) -> Attribution:
        """The sums over the tokens of each span, `(batch, span)`, with their texts as `tokens`.

        Args:
            spans: each `(start, stop)`, from the first token to before the second, or a part of the text; the same for
                every sample.

        Raises:
            InputError: when the values are not one number per token, or a sample has no such span or several.

        Example:
            >>> a = Attribution(torch.tensor([[1.0, 2.0, 3.0]]), None, True, "score", "", "", {}, torch.ones(1))
            >>> a.by_span([(0, 2), (2, 3)]).tensor
            tensor([[3., 3.]])
        """
        values = self._per_token()
        rows = self.tokens if self.tokens is not None else [None] * len(values)
        return self._summed("span", values, [span_groups(row, spans, values.shape[1]) for row in rows])

    def _per_token(self) -> torch.Tensor:
        values = self.tensor
        if values.ndim != 2 or (self.tokens is not None and any(len(row) != values.shape[1] for row in self.tokens)):
            raise InputError(f"words and spans need one number per token, (batch, token); got {describe(values)}.")
        return values

    def _summed(self, axis: str, values: torch.Tensor, groups: list[list[Group]]) -> Attribution:
        texts = self.tokens if self.tokens is not None else [[str(k) for k in range(values.shape[1])]] * len(values)
        named = [
            [
                join(row[start:stop]).strip(" ") if self.tokens is not None else f"{start}-{stop - 1}"
                for start, stop in parts
            ]
            for row, parts in zip(texts, groups, strict=True)
        ]
        most = max(len(row) for row in named)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Attribution)}
        fields |= {
            "values": sums(values, groups),
            "axes": ("batch", axis),
            "settings": {**self.settings, "summed over": f"{axis}s"},
            "inputs": None,
            "tokens": [row + [""] * (most - len(row)) for row in named],
            "standard_error": None,  # the errors of a sample's tokens are not independent
        }
        return Attribution(**fields)

    def summary(self) -> list[tuple[str, str]]:
        """Method, target, shape, score and checks."""
        if isinstance(self.values, torch.Tensor):
            shape = describe(self.values)
        else:
            shape = "; ".join(f"{name} {describe(values)}" for name, values in self.values.items())
        rows = [("method", self.how), ("target", self.target), ("values", f"{shape}, in {self.units}")]
        rows.append(("score", numbers(self.score)))
        return rows + [(name, numbers(check)) for name, check in self.checks.items()]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Relevance(Attribution):
    """Relevance of every input, and of every layer's output that was asked for, with the ledger of the whole score.

    Attributes:
        ledger: where the score went: inputs + additive constants + what rules absorbed = score.
        layers: relevance at layer outputs, by layer; the tuple holds one tensor per call. A layer that returned several
            tensors has an entry for each that the score depends on, such as `"rnn/h_n"`; `"rnn"` is then another name
            of it if there is only one.
        profile: sum and absolute sum of relevance by layer, in order of execution.
        rules_used: operation -> the rule that it got.
        parameters: relevance that passes each parameter that was asked for, shaped like it, summed over the batch.
    """

    ledger: Ledger = dataclasses.field(kw_only=True)
    layers: dict[str, tuple[torch.Tensor, ...]] = dataclasses.field(kw_only=True, default_factory=dict)
    profile: LayerProfile | None = dataclasses.field(kw_only=True, default=None)
    rules_used: dict[str, str] = dataclasses.field(kw_only=True, default_factory=dict)
    parameters: dict[str, torch.Tensor] = dataclasses.field(kw_only=True, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", ByTensor(self.layers))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ActivationMaps(Result):
    """The output of one layer, unit by unit, on the places of its input.

    Attributes:
        layer: path of the layer.
        call: which of its calls.
        values: `(batch, unit, *places)`: places are (height, width) of a convolution, tokens of a transformer, time
            steps of a recurrent layer; none for a dense layer.
        units: the unit that each entry of axis 1 is.
        axes: names of the axes of `values`.
        inputs: the input, where it is a single floating-point tensor.
    """

    layer: str
    call: int
    values: torch.Tensor
    units: tuple[int, ...]
    axes: tuple[str, ...]
    inputs: torch.Tensor | None = None

    def strongest(self, count: int = 5) -> list[tuple[int, float]]:
        """The units whose mean activation over the batch and all places is largest, with that mean.

        Args:
            count: how many.
        """
        means = self.values.float().mean(dim=[axis for axis in range(self.values.ndim) if axis != 1])
        best = means.topk(min(count, len(means)))
        return [(self.units[index], value) for value, index in zip(*map(torch.Tensor.tolist, best), strict=True)]

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a numpy array."""
        return as_array(self.values)

    def summary(self) -> list[tuple[str, str]]:
        """Layer, shape and the units that respond most."""
        best = ", ".join(f"{unit} ({mean:.3g})" for unit, mean in self.strongest(3))
        name = f"{self.layer} #{self.call}" if self.call else self.layer
        return [("layer", name), ("values", describe(self.values)), ("strongest units", best)]
