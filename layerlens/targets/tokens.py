"""Targets of language models: the next token by its text, and a whole continuation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from layerlens.errors import TargetError
from layerlens.inputs.inputs import Inputs
from layerlens.model.trees import describe
from layerlens.signatures import public

from .answers import Answers, Run
from .outputs import main_output
from .target import Names, Target, TokenNames, as_target


class Vocabulary(TokenNames):
    """The tokens of a tokenizer as class names, and the end of each text in a batch.

    A target can then be the text of the next token, and None is the most likely one.

    Args:
        tokenizer: a tokenizer as in `transformers`.
        inputs: inputs of the model.
        run: runs the borrowed model, see `Answers`.
        names: names of the positional arguments of the model.
    """

    def __init__(
        self,
        tokenizer: Callable[..., Any],
        inputs: Inputs | None = None,
        run: Run | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        padding = getattr(tokenizer, "pad_token_id", None)
        self._answers = None if inputs is None else Answers(inputs, run, names, padding)

    def __getitem__(self, index: int) -> str:
        decode = getattr(self._tokenizer, "decode", None)
        return f"token {index}" if decode is None else repr(str(decode([index])))

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return len(self._tokenizer) if hasattr(self._tokenizer, "__len__") else 0

    def get(self, index: int, default: Any = None) -> Any:
        """Return the text of a token, in quotes."""
        return self[index]

    def read(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens."""
        return [int(index) for index in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def index(self, text: str) -> int:
        """Return the id of a text that is one token.

        Raises:
            TargetError: when it is not exactly one.
        """
        ids = self.read(text)
        if len(ids) != 1:
            parts = ", ".join(self[index] for index in ids) or "none"
            spaced = "" if text.startswith(" ") else f" Words inside a text often begin with a space: {' ' + text!r}."
            raise TargetError(
                f"target {text!r} is {len(ids)} tokens ({parts}), and the next token is one. Take one of them, or give "
                f"the whole text as input and target=continuation({text!r}).{spaced}"
            )
        return ids[0]

    def target(self, text: str) -> Target:
        """Return the logit of a text as the next token."""
        index = self.index(text)
        return Target(lambda output, rows: self._last(output, rows)[:, index], f"{text!r} next")

    def predicted(self) -> Target:
        """Return the logit of the most likely next token, or of the predicted class for a classifier."""

        def best(output: object, rows: torch.Tensor) -> torch.Tensor:
            return self._predicted_tokens(output)(output, rows)

        return Target(best, "predicted next token", self._predicted_tokens)

    def _predicted_tokens(self, output: object) -> Target:
        if main_output(output).ndim < 3:
            return as_target(None).resolve(output)
        logits = self._last(output, None).detach()
        ids = logits.argmax(dim=1)
        each = tuple(f"{self[index]} (predicted)" for index in ids.tolist())
        label = ", ".join(dict.fromkeys(each[:3])) + (", ..." if len(set(each)) > 3 else "")

        def score(other: object, rows: torch.Tensor) -> torch.Tensor:
            return self._last(other, rows).gather(1, ids[rows.to(ids.device)].unsqueeze(1)).squeeze(1)

        return Target(score, label, each=each)

    def _last(self, output: object, rows: torch.Tensor | None) -> torch.Tensor:
        """The logits at the last token before the padding, `(batch, vocabulary)`."""
        logits = self.logits(output)
        places = None if self._answers is None else self._answers.last(logits.shape[1])
        if places is None:
            return logits[:, -1]
        places = places if rows is None else places[rows.to(places.device)]
        return logits[torch.arange(len(logits), device=logits.device), places.to(logits.device)]

    def ids(self, output: object) -> torch.Tensor | None:
        """Return the token ids that the places of the output follow, `(batch, place)`; None if they are unknown."""
        found = None if self._answers is None else self._answers.sequence(self.logits(output).shape[1])
        return None if found is None else found.ids

    def logits(self, output: object) -> torch.Tensor:
        """Return the main output if it has a number for each token of the vocabulary at each place.

        Raises:
            TargetError: if it does not.
        """
        scores = main_output(output)
        if scores.ndim != 3 or scores.shape[-1] < len(self):
            raise TargetError(
                f"the output {describe(scores)} has no scores of {len(self)} tokens at each place, so no token can be "
                "its target. A classifier of text takes a class index, or a name with Lens(..., class_names=...); an "
                "encoder takes a function of its output, (batch,)."
            )
        return scores


@public
def continuation(tokens: int | str) -> Target:
    """Return the log-probability of the last tokens of the input as the target: why the text continues like this.

    sum over t of log p(x_t | x_1 ... x_{t-1}), in nats. Give the prompt and the continuation as one input. The gradient
    at a token of the continuation comes from the tokens after it.

    Args:
        tokens: number of tokens at the end of the input, or the text that the input ends with.

    Raises:
        TargetError: on use without a tokenizer or with texts of different lengths, or when the input ends differently.

    Example:
        `lens.saliency("The capital of France is Paris.", target=continuation(" Paris."))`
    """

    def reader(names: Names) -> Target:
        if not isinstance(names, Vocabulary):
            raise TargetError(need)
        count = len(names.read(tokens)) if isinstance(tokens, str) else tokens

        def score(output: object, rows: torch.Tensor) -> torch.Tensor:
            ids = names.ids(output)
            if ids is None:
                raise TargetError(need)
            if not 0 < count < ids.shape[1]:
                raise TargetError(f"a continuation of {count} tokens needs a longer input; it has {ids.shape[1]}.")
            if isinstance(tokens, str) and any(row[-count:] != names.read(tokens) for row in ids.tolist()):
                raise TargetError(f"the input does not end with the tokens of {tokens!r}; give the number of tokens.")
            return _log_probability(names.logits(output), ids[rows.to(ids.device)], count)

        return Target(score, label)

    def unread(output: object, rows: torch.Tensor) -> torch.Tensor:
        return reader(None)(output, rows)

    need = "a continuation needs Lens(model, tokenizer=...) and a text, or token ids, as input."
    label = f"log p({tokens!r})" if isinstance(tokens, str) else f"log p(last {tokens} tokens)"
    return Target(unread, label, reader=reader)


def _log_probability(logits: torch.Tensor, ids: torch.Tensor, count: int) -> torch.Tensor:
    before = logits[:, -count - 1 : -1].log_softmax(dim=-1)
    return before.gather(2, ids[:, -count:].to(logits.device).unsqueeze(2)).squeeze(2).sum(dim=1)


def token_texts(tokenizer: Callable[..., Any], inputs: Inputs) -> list[list[str]] | None:
    """Return the text of each token id of `input_ids`, by sample; None if the tokenizer cannot convert them."""
    convert = getattr(tokenizer, "convert_ids_to_tokens", None)
    ids = inputs.tensors().get("input_ids")
    if convert is None or ids is None:
        return None
    return [[str(token) for token in convert(list(row))] for row in ids.tolist()]


def token_pairs(tokenizer: Callable[..., Any], x: Inputs, other: Inputs) -> tuple[str, ...] | None:
    """Return names of the positions of two texts that differ in some tokens: `3 of`, `4 Italy / France`.

    None for a batch of several texts, and if the tokenizer cannot decode.
    """
    decode = getattr(tokenizer, "decode", None)
    pair = [inputs.tensors().get("input_ids") for inputs in (x, other)]
    if decode is None or any(ids is None or ids.ndim != 2 or len(ids) != 1 for ids in pair):
        return None
    texts = [[str(decode([token])).strip() for token in ids[0].tolist()] for ids in pair if ids is not None]
    return tuple(f"{k} {a if a == b else f'{a} / {b}'}" for k, (a, b) in enumerate(zip(*texts, strict=False)))
