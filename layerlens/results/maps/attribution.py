"""Results that put a number on every place of the input or of a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from layerlens.errors import InputError, need
from layerlens.inputs.tables import Index, Names, check_names
from layerlens.inputs.token_texts import Group
from layerlens.model.trees import as_array, describe

from ..arithmetic import combined
from ..base import Result, numbers
from ..intervals import excludes_zero, intervals_of, joined
from ..tables import rows
from .token_spans import Span, marked_texts, span_groups, sums, word_groups

Values = torch.Tensor | dict[str, torch.Tensor]
"""One tensor, or one by name for a model with several inputs."""

Tokens = list[list[str]] | dict[str, list[list[str]]]
"""A text for each token, by sample; or one by name for a model with several inputs, of which some may have none."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """How much each place of the input contributed to the score.

    Attributes:
        values: shaped like the input, `(batch, ...)`; `(batch, token)` for token ids; a dict by input name when the
            model takes several.
        axes: names of the axes, where known; a dict by input name when the model takes several.
        signed: whether negative values have a meaning (evidence against); False for maps of magnitude.
        units: what a value is, for example `"score"` when the values of a sample add up to a part of its score.
        target: what was scored.
        method: how.
        settings: every option of the method as used.
        score: the score of each sample, `(batch,)`.
        checks: what the method can prove about itself, each `(batch,)`, for example `"completeness gap"`.
        inputs: the input, in the same form as `values` where it has the same axes; None where it is not kept.
        tokens: the tokenizer's name of each token, such as `Ġcapital`, when known; a dict by input name where `values`
            is one: the source and the answer of an encoder-decoder each have theirs.
        targets: what was scored, sample by sample, where that differs.
        standard_error: standard error of the values, in the same form, if they are a mean over random draws.
        degrees: degrees of freedom of the standard error, for `interval`; None if there is none.
        skewness: skewness of the values over seeds, for `interval`, in the same form; None where it takes them as even.
        used: which places hold a token and no padding, in the form of `values`; None where all do, or it is unknown.
        cost: what the method takes for a sample, in forward passes or gradients; empty if unknown.
        texts: what each token adds to the decoded text, in the form of `tokens`, when known: with the space before it,
            and empty for a token that is a part of the character before it.
        features: names of the features by input name, such as the columns of a DataFrame; empty where unknown.
        index: names of the samples, such as the index of a DataFrame; None where unknown.
    """

    values: Values
    axes: tuple[str, ...] | dict[str, tuple[str, ...]] | None
    signed: bool
    units: str
    target: str
    method: str
    settings: dict[str, Any]
    score: torch.Tensor
    checks: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    inputs: Values | None = None
    tokens: Tokens | None = None
    targets: tuple[str, ...] | None = None
    standard_error: Values | None = None
    cost: str = ""
    used: Values | None = None
    texts: Tokens | None = None
    features: dict[str, Names] = dataclasses.field(default_factory=dict)
    index: Index | None = None
    degrees: float | None = None
    skewness: Values | None = None

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

    def interval(self, share: float = 0.9) -> tuple[Values, Values]:
        """The interval of each value over the random draws of the method: low and high ends, in the form of `values`.

        Values less and plus the standard error times a quantile of Student's t (normal where `degrees` is None), which
        is uneven where the draws are (`skewness`, Hall 1992). It holds what the method would find with endless draws,
        or, with a penalty (`rise`, `lime`), the mean over seeds: where `checks["share kept by the penalty"]` of `rise`
        is below .9, its values and intervals are pulled to zero.

        Args:
            share: share of such intervals that should hold the value, between 0 and 1.

        Raises:
            InputError: when the values have no standard error.
            OptionError: when the share is not between 0 and 1.

        Example:
            >>> a = Attribution(torch.tensor([[1.0, 2.0]]), None, True, "score", "", "", {}, torch.ones(1),
            ...                 standard_error=torch.tensor([[0.1, 0.2]]), degrees=12)
            >>> a.interval(0.9)
            (tensor([[0.8218, 1.6435]]), tensor([[1.1782, 2.3565]]))
        """
        return intervals_of(self.method, self.values, self.standard_error, self.degrees, self.skewness, share)

    @property
    def has_interval(self) -> bool:
        """Whether the values have an error, and so an `interval`."""
        return self.standard_error is not None

    def settled(self, share: float = 0.9) -> Values:
        """Whether the sign of each value is settled: True where its `interval` excludes 0, in the form of `values`.

        It is False where the error of a value is not known (NaN). Of values that are truly 0, one in ten seems settled
        at 0.9.

        Args:
            share: share of the interval.

        Raises:
            InputError: when the values have no standard error.
            OptionError: when the share is not between 0 and 1.

        Example:
            >>> a = Attribution(torch.tensor([[1.0, 2.0]]), None, True, "score", "", "", {}, torch.ones(1),
            ...                 standard_error=torch.tensor([[0.1, 2.0]]), degrees=12)
            >>> a.settled()
            tensor([[ True, False]])
        """
        found: Values = joined(excludes_zero, *self.interval(share))
        return found

    def numpy(self) -> Any:
        """The values as a numpy array, or as a dict of arrays; bfloat16 becomes float32."""
        if isinstance(self.values, torch.Tensor):
            return as_array(self.values)
        return {name: as_array(values) for name, values in self.values.items()}

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each value: input where there are several, sample, place, token, value.

        Samples and features have their names where these are known.
        """
        return rows(self.values, self.axes, self.tokens, self.features, self.index)

    def to_frame(self, name: str | None = None) -> Any:
        """A pandas DataFrame like that of the input: a row for each sample, and a column for each feature.

        Args:
            name: name of the input where there are several.

        Raises:
            InputError: when the values are not one number for each feature, or there is no such input.
            MissingPackage: when pandas is not installed.

        Example:
            >>> a = Attribution(torch.tensor([[1.0, 2.0]]), None, True, "score", "", "", {}, torch.ones(1))
            >>> a.named(["age", "bmi"], index=["Ada"]).to_frame().loc["Ada", "bmi"].item()
            2.0
        """
        if (values := self._values_of(name)).ndim != 2:
            raise InputError(f"a table needs one number for each feature, (batch, feature); got {describe(values)}.")
        columns = self.features_of(name) or None
        return need("pandas", "to_frame").DataFrame(as_array(values), columns=columns, index=self.index)

    def named(
        self, features: Sequence[str] | Mapping[str, Sequence[str]] = (), index: Sequence[str | int] | None = None
    ) -> Attribution:
        """The same result with names of features and samples, which figures and tables show.

        Args:
            features: names of the features, in order; of several inputs a dict by input name.
            index: names of the samples.

        Raises:
            InputError: when there are more or fewer names than features or samples.
        """
        given = features if isinstance(features, Mapping) else {next(iter(self.features), "0"): features}
        known_names = {name: tuple(names) for name, names in given.items() if names}
        for name, names in known_names.items():
            check_names(name, names, self._values_of(name if isinstance(self.values, dict) else None).shape)
        if index is not None and len(index) != len(self.score):
            raise InputError(f"{len(index)} names were given for {len(self.score)} sample(s).")
        return dataclasses.replace(self, features=self.features | known_names, index=tuple(index or ()) or self.index)

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

    def axes_of(self, name: str | None = None) -> tuple[str, ...] | None:
        """The names of the axes of the values of an input, None where they are unknown.

        Args:
            name: name of the input; None where there is one.
        """
        return self.axes.get(name or "") if isinstance(self.axes, dict) else self.axes

    def tokens_of(self, name: str | None = None) -> list[list[str]] | None:
        """The tokens of an input, None where they are unknown.

        Args:
            name: name of the input; None where there is one.
        """
        return self.tokens.get(name or "") if isinstance(self.tokens, dict) else self.tokens

    def features_of(self, name: str | None = None) -> Names:
        """The names of the features of an input, empty where they are unknown.

        Args:
            name: name of the input; None where there is one.
        """
        if name is None and isinstance(self.values, torch.Tensor):
            return next(iter(self.features.values()), ())
        return self.features.get(name or "", ())

    def sample_name(self, sample: int) -> str:
        """The name of a sample, or its number where it has none."""
        return str(sample if self.index is None else self.index[sample])

    def used_of(self, name: str | None) -> torch.Tensor | None:
        """Which places of an input hold a token and no padding, `(batch, token)`; None where all do."""
        return self.used.get(name or "") if isinstance(self.used, dict) else self.used

    def texts_of(self, name: str | None = None) -> list[list[str]] | None:
        """What the tokens of an input read, None where it is unknown.

        Args:
            name: name of the input; None where there is one.
        """
        return self.texts.get(name or "") if isinstance(self.texts, dict) else self.texts

    def by_word(self) -> Attribution:
        """The sums over the tokens of each word, `(batch, word)`, with the words as `tokens`.

        A word begins after white space in the decoded text, or where the names of tokens say so (a leading `Ġ`, `▁`,
        space, or no `##`); punctuation and special tokens are words themselves. Shorter texts of a batch get zeros and
        empty words at their end. Of several inputs, those whose tokens are known become words.

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
        if self.tokens is None:
            self._check_tokens(None)
            raise InputError("the texts of the tokens are not known: Lens(model, tokenizer=...), or .by_span(spans).")
        names: list[str | None] = list(self.tokens) if isinstance(self.tokens, dict) else [None]
        groups: dict[str | None, list[list[Group]]] = {}
        for name in names:
            self._check_tokens(name)
            tokens = self.tokens_of(name) or []
            texts: Sequence[list[str] | None] = self.texts_of(name) or [None] * len(tokens)
            groups[name] = [word_groups(row, own) for row, own in zip(tokens, texts, strict=True)]
        return self._summed("word", groups)

    def by_span(self, spans: Sequence[Span], name: str | None = None) -> Attribution:
        """The sums over the tokens of each span, `(batch, span)`, with their texts as `tokens`.

        Args:
            spans: each `(start, stop)`, from the first token to before the second, or a part of the text; the same for
                every sample.
            name: name of the input where there are several; the others stay as they are.

        Raises:
            InputError: when the values are not one number per token, or a sample has no such span or several.

        Example:
            >>> a = Attribution(torch.tensor([[1.0, 2.0, 3.0]]), None, True, "score", "", "", {}, torch.ones(1))
            >>> a.by_span([(0, 2), (2, 3)]).tensor
            tensor([[3., 3.]])
        """
        values = self._check_tokens(name)
        rows: Sequence[list[str] | None] = self.tokens_of(name) or [None] * len(values)
        texts: Sequence[list[str] | None] = self.texts_of(name) or [None] * len(values)
        groups = [span_groups(row, spans, values.shape[1], own) for row, own in zip(rows, texts, strict=True)]
        return self._summed("span", {name: groups})

    def _values_of(self, name: str | None) -> torch.Tensor:
        """Return the values of an input.

        Raises:
            InputError: when there is no such input.
        """
        if name is None:
            return self.tensor
        if isinstance(self.values, dict) and name in self.values:
            return self.values[name]
        known = f"the inputs are {', '.join(self.values)}" if isinstance(self.values, dict) else "it has no name"
        raise InputError(f"there is no input {name!r}: {known}.")

    def _check_tokens(self, name: str | None) -> torch.Tensor:
        """Return the values of an input of tokens, `(batch, token)`.

        Raises:
            InputError: when there is no such input, or not one number per token.
        """
        values, tokens = self._values_of(name), self.tokens_of(name)
        if values.ndim != 2 or (tokens is not None and any(len(row) != values.shape[1] for row in tokens)):
            raise InputError(f"words and spans need one number per token, (batch, token); got {describe(values)}.")
        return values

    def _summed(self, axis: str, groups: dict[str | None, list[list[Group]]]) -> Attribution:
        """The sums over groups of tokens, by input."""
        values: dict[Any, torch.Tensor] = dict(self.values) if isinstance(self.values, dict) else {None: self.values}
        tokens: dict[str | None, list[list[str]]] = {}
        for name, samples in groups.items():
            texts, names = self.texts_of(name), self.tokens_of(name)
            if texts is None and names is not None:
                texts = [marked_texts(row) for row in names]
            if texts is None:
                named = [[f"{start}-{stop - 1}" for start, stop in parts] for parts in samples]
            else:
                pairs = zip(texts, samples, strict=True)
                named = [["".join(row[a:b]).strip(" \t\u3000\xa0") for a, b in parts] for row, parts in pairs]
            most = max(map(len, named))
            tokens[name] = [row + [""] * (most - len(row)) for row in named]
            values[name] = sums(values[name], samples)
        several = isinstance(self.values, dict)

        def others(known: object) -> dict[Any, Any]:
            return {name: one for name, one in known.items() if name not in groups} if isinstance(known, dict) else {}

        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Attribution)}
        fields |= {
            "values": values if several else values[None],
            "axes": others(self.axes) | dict.fromkeys(groups, ("batch", axis)) if several else ("batch", axis),
            "settings": {**self.settings, "summed over": f"{axis}s"},
            "inputs": others(self.inputs) or None,
            "tokens": others(self.tokens) | tokens if several else tokens[None],
            "texts": others(self.texts) or None,
            "used": others(self.used) or None,
            "features": others(self.features) if several else {},
            "degrees": None,
            "skewness": None,
            "standard_error": None,  # the errors of a sample's tokens are not independent
        }
        return Attribution(**fields)

    def summary(self) -> list[tuple[str, str]]:
        """Method, target, shape, score and checks."""
        named = {"": self.values} if isinstance(self.values, torch.Tensor) else self.values
        shape = "; ".join(f"{name} {describe(values)}".strip() for name, values in named.items())
        why = self.settings.get("chosen")
        chosen = [("chosen", f"{why}; {self.cost}")] if isinstance(why, str) and self.cost else []
        rows = [("method", self.how), ("target", self.target), ("values", f"{shape}, in {self.units}")]
        if "until" in self.settings:
            drawn = next(name for name in ("samples", "permutations", "draws") if name in self.settings)
            rows.append(("until", f"{self.settings['until']}, {drawn}: {self.settings[drawn]}"))
        return [*rows, ("score", numbers(self.score)), *chosen, *((k, numbers(one)) for k, one in self.checks.items())]
