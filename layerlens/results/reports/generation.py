"""A text as a model wrote it: what it considered at each step, and what each step came from."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import OptionError, need

from ..maps.attention_weights import AttentionWeights
from ..maps.relevance import Relevance
from ..values.explained import Explained
from ..values.matrix import Matrix
from .logit_lens import LogitLens


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Generation(Explained):
    """A generated text with the probability of each of its tokens, and what was recorded at each step.

    Step t is the forward pass that emitted token t. All tensors are on the CPU.

    Attributes:
        text: the text that was generated, without the prompt.
        tokens: what each emitted token reads.
        ids: their ids, `(steps,)`.
        prompt: what each token of the prompt reads.
        log_p: log-probability of each emitted token given all before it, in nats, `(steps,)` float64.
        top: the likeliest tokens at each step, likeliest first, `(steps, k)`.
        top_log_p: their log-probabilities, `(steps, k)` float64.
        names: token -> what it reads, of those that are known.
        inputs: the input of one forward pass over the prompt and all emitted tokens but, in an encoder-decoder, the
            last; an input of every analyzer.
        sequence: which of these inputs holds the text.
        method: how it was generated.
        settings: every option as used.
        checks: `"log p of the run"`, the largest difference of `log_p` from the log-probabilities of the run that
            generated the text, step by step with its cache, in nats: one forward pass then explains every step.
        explanation: what the numbers mean and what they do not, a sentence each.
        logit_lens: what each layer would have emitted at each step (layer x step).
        attention: attention of each head at each step: the queries are the places that emitted the tokens.
        relevance: relevance of log p of each emitted token for every input, one for each step.
    """

    text: str
    tokens: tuple[str, ...]
    ids: torch.Tensor
    prompt: tuple[str, ...]
    log_p: torch.Tensor
    top: torch.Tensor
    top_log_p: torch.Tensor
    names: dict[int, str]
    inputs: dict[str, torch.Tensor]
    sequence: str
    method: str
    settings: dict[str, Any]
    checks: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    explanation: tuple[str, str] = ("", "")
    logit_lens: LogitLens | None = None
    attention: AttentionWeights | None = None
    relevance: tuple[Relevance, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def name(self, token: int) -> str:
        """What a token reads, or its number."""
        return self.names.get(token, str(token))

    def step(self, index: int) -> list[tuple[str, float]]:
        """(token, probability) of the likeliest tokens at one step, likeliest first.

        Raises:
            OptionError: when there is no such step.
        """
        if not -len(self) <= index < len(self):
            raise OptionError(f"there is no step {index}: {len(self)} tokens were generated.")
        pairs = zip(self.top[index].tolist(), self.top_log_p[index].exp().tolist(), strict=True)
        return [(self.name(token), p) for token, p in pairs]

    def changed(self, other: Generation) -> list[tuple[int, str, str]]:
        """(step, token here, token of another generation) at every step at which they differ; `""` after the end.

        After the first difference both are about different texts.

        Args:
            other: the generation to compare with, such as one with a head switched off.
        """
        steps = range(max(len(self), len(other)))
        pairs = [tuple(one.tokens[k] if k < len(one) else "" for one in (self, other)) for k in steps]
        return [(k, here, there) for k, (here, there) in enumerate(pairs) if here != there]

    def considered(self) -> LogitLens:
        """The emitted and the likeliest tokens with their probabilities (rank x step), as a matrix to draw."""
        ids = torch.cat([self.ids.unsqueeze(1), self.top], dim=1).T
        values = torch.cat([self.log_p.unsqueeze(1), self.top_log_p], dim=1).T.exp()
        ranks = ("emitted", *(f"#{rank + 1}" for rank in range(self.top.shape[1])))
        return LogitLens(
            "probability", ranks, self.columns, values, ("rank", "step"), "1", False, self.method, self.settings,
            explanation=self.explanation, targets=tuple(self.ids.tolist()), top=ids.unsqueeze(2),
            scores=values.unsqueeze(2), names=self.names,
        )  # fmt: skip

    @property
    def columns(self) -> tuple[str, ...]:
        """A name for each step: its number and its token."""
        return tuple(f"{k} {token!r}" for k, token in enumerate(self.tokens))

    def sources(self, name: str | None = None, *, layer: str | None = None, head: int | None = None) -> Matrix:
        """What each emitted token (rows) came from (columns: the tokens before it); NaN for itself and later ones.

        Args:
            name: an input, where there are several; None for the text itself.
            layer: an attention, to read its weights instead of the relevance.
            head: one of its heads; None for the mean over heads.

        Raises:
            OptionError: when it was not recorded, or an input is not a row of tokens.
        """
        if layer is not None:
            return self._attended(layer, head)
        if not self.relevance:
            raise OptionError('no relevance was recorded: lens.generate(prompt, record="relevance").')
        name = self.sequence if name is None else name
        rows = []
        for one in self.relevance:
            values = one.values.get(name) if isinstance(one.values, dict) else one.values
            if values is None or values.ndim != 2:
                known = list(one.values) if isinstance(one.values, dict) else ""
                raise OptionError(
                    f"input {name!r} is not a row of tokens; take .relevance[step].values, by name {known}."
                )
            rows.append(values[0].double().cpu())
        first = self.relevance[0]
        return self._matrix(rows, f"relevance of log p for {name}", "nats", True, first.method, name == self.sequence)

    def _attended(self, layer: str, head: int | None) -> Matrix:
        if self.attention is None:
            raise OptionError('no attention was recorded: lens.generate(prompt, record="attention").')
        weights = self.attention[layer][0].double()
        if layer not in self.attention.queries:
            raise OptionError(
                f"the queries of {layer!r} are not the tokens of the text: {list(self.attention.queries)}."
            )
        if head is not None and not -len(weights) <= head < len(weights):
            raise OptionError(f"there is no head {head} in {layer!r}: it has {len(weights)}.")
        what = f"attention of {layer}" + ("" if head is None else f", head {head}")
        rows = list(weights.mean(dim=0) if head is None else weights[head])
        later = [row[len(self.prompt) + step :] for step, row in enumerate(rows)]
        own = len(rows[0]) == len(self._places()) - 1 and not any(bool(row.any()) for row in later)  # not of a source
        return self._matrix(rows, what, "share", False, "softmax(q k^T)", own)

    def _places(self) -> tuple[str, ...]:
        return (*self.prompt, *self.tokens)

    def _matrix(
        self, rows: list[torch.Tensor], quantity: str, units: str, signed: bool, method: str, own: bool
    ) -> Matrix:
        """Rows of several lengths as a matrix; `own` for the text itself, of which a step saw the tokens before."""
        places = self._places()[:-1] if own else tuple(map(str, range(max(map(len, rows)))))
        values = torch.full((len(rows), len(places)), torch.nan, dtype=torch.float64)
        for step, row in enumerate(rows):
            seen = min(len(self.prompt) + step, len(row)) if own else len(row)
            values[step, :seen] = row[:seen]
        names = tuple(f"{k} {place!r}" for k, place in enumerate(places)) if own else places
        return Matrix(quantity, self.columns, names, values, ("emitted", "source"), units, signed, method,
                      self.settings, explanation=self.explanation)  # fmt: skip

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each step: the token, its probability, and the likeliest one otherwise."""
        pandas = need("pandas", "to_pandas")
        return pandas.DataFrame(self.rows(), columns=["step", "token", "probability", "runner_up", "its_probability"])

    def rows(self) -> list[tuple[int, str, float, str, float]]:
        """(step, token, probability, likeliest other token, its probability) of every step."""
        found = []
        for step, (token, log_p) in enumerate(zip(self.ids.tolist(), self.log_p.tolist(), strict=True)):
            others = zip(self.top[step].tolist(), self.top_log_p[step].exp().tolist(), strict=True)
            other, p = next(((one, p) for one, p in others if one != token), (None, 0.0))
            named = "" if other is None else self.name(other)
            found.append((step, self.tokens[step], float(torch.tensor(log_p).exp()), named, p))
        return found

    def numpy(self) -> Any:
        """The log-probability of each emitted token as a numpy array."""
        return self.log_p.numpy()

    def summary(self) -> list[tuple[str, str]]:
        """The text, how sure the model was, and what was recorded."""
        least = int(self.log_p.argmin()) if len(self) else 0
        text = self.text if len(self.text) <= 200 else f"{self.text[:197]}..."
        recorded = [one for one in ("logit_lens", "attention", "relevance") if getattr(self, one)]
        rows = [("text", repr(text)), ("tokens", f"{len(self)} after {len(self.prompt)} of the prompt")]
        if len(self):
            unsure = f"{self.tokens[least]!r} at step {least} ({float(self.log_p[least].exp()):.2g})"
            rows += [("log p", f"{float(self.log_p.sum()):.4g} nats"), ("least sure of", unsure)]
        return [*rows, ("recorded", ", ".join(recorded) or "probabilities")]
