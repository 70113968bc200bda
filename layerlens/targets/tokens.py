"""Targets of language models: the next token by its text, and a whole continuation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from layerlens.errors import TargetError, warn
from layerlens.inputs.inputs import Inputs
from layerlens.inputs.sequences import tokens_first
from layerlens.inputs.token_texts import decoded_texts, labels
from layerlens.model.trees import describe
from layerlens.signatures import public

from .answers import Answers, Run
from .names import Names, TokenNames
from .outputs import log_probabilities, main_output
from .target import Target, as_target


class Vocabulary(TokenNames):
    """The tokens of a tokenizer as class names.

    A target can then be the text of the next token, and None is the most likely one.

    Args:
        tokenizer: a tokenizer as in `transformers`.
        run: runs the borrowed model, see `Answers`; None if there is no model to try.
    """

    def __init__(self, tokenizer: Callable[..., Any], run: Run | None = None) -> None:
        self._tokenizer, self._run = tokenizer, run
        self._found: tuple[Inputs, Answers] | None = None

    def __getitem__(self, index: int) -> str:
        decode = getattr(self._tokenizer, "decode", None)
        text = "" if decode is None else str(decode([index]))
        if "\ufffd" in text:
            return f"token {index}, a part of a character"
        return f"token {index}" if decode is None else repr(text)

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

        Warns:
            UserWarning: when the same word with a space before it is another token.
        """
        ids = self.read(text)
        if len(ids) != 1:
            parts = ", ".join(self[index] for index in ids) or "none"
            spaced = "" if text.startswith(" ") else f" Words inside a text often begin with a space: {' ' + text!r}."
            raise TargetError(
                f"target {text!r} is {len(ids)} tokens ({parts}), and the next token is one. Take one of them, or give "
                f"the whole text as input and target=continuation({text!r}).{spaced}"
            )
        inside = self.read(f" {text}") if text[:1].isalnum() else ids
        if len(inside) == 1 and inside != ids:
            warn(
                f"target {text!r} is token {ids[0]}, which continues a word or follows a line break; the word after a "
                f"space is token {inside[0]}: target={' ' + text!r}. target={ids[0]} takes the first without a warning."
            )
        return ids[0]

    def answers(self, inputs: Inputs) -> Answers:
        """Return which input the places of an output follow."""
        if self._found is None or self._found[0] is not inputs:
            padding = getattr(self._tokenizer, "pad_token_id", None)
            self._found = inputs, Answers(inputs, self._run, padding)
        return self._found[1]

    def next_scores(self, output: object, rows: torch.Tensor, answers: Answers | None) -> torch.Tensor:
        """Return the logits at the last token of each text, `(len(rows), tokens)`.

        Raises:
            TargetError: when the output has no scores of the tokens, or which is the last token is unknown.
        """
        logits = self.logits(output)
        place = -1 if answers is None else answers.place(-1, rows, logits.shape[1])
        return logits[:, place] if isinstance(place, int) else logits[torch.arange(len(rows)), place.to(logits.device)]

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
def continuation(tokens: int | str | Sequence[int | str]) -> Target:
    """Return the log-probability of the last tokens of the input as the target: why the text continues like this.

    sum over t of log p(x_t | x_1 ... x_{t-1}), in nats. Give the prompt and the continuation as one input. The gradient
    at a token of the continuation comes from the tokens after it. Padding, on either side, is not counted.

    Args:
        tokens: number of tokens at the end of the input, or the text that the input ends with (which needs a
            tokenizer); or a list of those, one per sample.

    Raises:
        TargetError: on use without token ids, for a text without a tokenizer, or when the input ends differently.

    Example:
        `lens.saliency("The capital of France is Paris.", target=continuation(" Paris."))`
    """
    if not isinstance(tokens, (int, str)):
        return as_target([continuation(one) for one in tokens])
    return _continuation(tokens, None)


def _continuation(tokens: int | str, names: Names) -> Target:
    def unread(output: object, rows: torch.Tensor) -> torch.Tensor:
        raise TargetError(f"{label} is the score of an input; it needs token ids, as text or input_ids.")

    def bind(inputs: Inputs | None, samples: torch.Tensor | None) -> Target:
        if inputs is None:
            return target
        answers, wanted = Answers(inputs), None
        if isinstance(names, Vocabulary):
            answers, wanted = names.answers(inputs), names.read(tokens) if isinstance(tokens, str) else None
        elif isinstance(tokens, str):
            raise TargetError(f"{label} needs a tokenizer, Lens(model, tokenizer=...); or give the number of tokens.")
        count = int(tokens) if wanted is None else len(wanted)
        return Target(lambda output, rows: _log_probability(output, rows, answers, count, wanted), label)

    label = f"log p({tokens!r})" if isinstance(tokens, str) else f"log p(last {tokens} tokens)"
    reader = None if names is not None else lambda names: _continuation(tokens, names)
    target = Target(unread, label, reader=reader, binder=bind)
    return target


def _log_probability(
    output: object, rows: torch.Tensor, answers: Answers, count: int, wanted: list[int] | None
) -> torch.Tensor:
    """The log-probability of the last tokens of each row's text, `(len(rows),)`.

    Raises:
        TargetError: when a text is too short or ends differently, or the output has no scores at each of its places.
    """
    logits = main_output(output)
    read = answers.sequence(logits.shape[1]) if logits.ndim == 3 else None
    if read is None or read.ids is None:
        raise TargetError(
            f"a continuation needs token ids as input, and scores of every token at each; got {describe(logits)}."
        )
    used = answers.used(logits.shape[1])
    ids = read.ids[rows.to(read.ids.device)]
    order, counts = tokens_first(torch.ones_like(ids, dtype=torch.bool) if used is None else used[rows.to(used.device)])
    if not 0 < count < int(counts.min()):
        raise TargetError(f"a continuation of {count} tokens needs a longer input; it has {int(counts.min())}.")
    back = torch.arange(-count - 1, 0, device=counts.device)
    places = order.gather(1, counts.unsqueeze(1) + back)  # (n, count + 1): the token before them, and they
    ids = ids.gather(1, places.to(ids.device))[:, 1:].to(logits.device)
    if wanted is not None and any(row != wanted for row in ids.tolist()):
        raise TargetError(f"an input does not end with the tokens {wanted} of the text; give the number of tokens.")
    before = places[:, :-1, None].to(logits.device).expand(-1, -1, logits.shape[2])
    return log_probabilities(logits.gather(1, before)).gather(2, ids.unsqueeze(2)).squeeze(2).sum(dim=1)


def token_pairs(tokenizer: Callable[..., Any], x: Inputs, other: Inputs) -> tuple[str, ...] | None:
    """Return names of the positions of two texts that differ in some tokens: `3 of`, `4 Italy / France`.

    None for a batch of several texts, and if the tokenizer cannot decode.
    """
    texts = [place_names(tokenizer, inputs.tensors().get("input_ids")) for inputs in (x, other)]
    if texts[0] is None or texts[1] is None:
        return None
    pairs = ((a.strip(), b.strip()) for a, b in zip(*texts, strict=False))
    return tuple(f"{k} {a if a == b else f'{a} / {b}'}" for k, (a, b) in enumerate(pairs))


def place_names(tokenizer: Callable[..., Any], ids: torch.Tensor | None) -> list[str] | None:
    """Return what each place of one text reads; parts of a character have the character and a number.

    None for a batch of several texts, and if the tokenizer cannot decode.
    """
    decode = getattr(tokenizer, "decode", None)
    if decode is None or ids is None or ids.ndim != 2 or len(ids) != 1:
        return None
    texts = decoded_texts(tokenizer, ids)
    return [str(decode([token])) for token in ids[0].tolist()] if texts is None else labels(texts[0])
