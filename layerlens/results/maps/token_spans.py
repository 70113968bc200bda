"""From tokens to words and spans: the markers that tokenizers leave, and the sums over them."""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Sequence
from typing import Final, TypeAlias

import torch

from layerlens.errors import InputError, warn
from layerlens.model.trees import describe

Group: TypeAlias = tuple[int, int]
"""Tokens from the first to before the second."""

Span: TypeAlias = "tuple[int, int] | str"

SPACES: Final = ("Ġ", "▁", "Ċ", "ĉ", " ", "\n", "\t")
"""What a token that begins a word begins with: byte-level tokenizers, SentencePiece, and plain text."""


def word_groups(tokens: Sequence[str]) -> list[Group]:
    """Which tokens make up each word, by the markers of the tokenizer.

    Example:
        >>> word_groups(["The", "Ġcap", "ital", "Ġis", "."])
        [(0, 1), (1, 3), (3, 4), (4, 5)]
        >>> word_groups(["[CLS]", "un", "##real", "[SEP]"])
        [(0, 1), (1, 3), (3, 4)]
    """
    pieces = any(token.startswith("##") for token in tokens)
    spaced = any(token.startswith(SPACES) for token in tokens)
    whole = any(token.startswith("[") and _special(token) for token in tokens)  # as "##" has them
    touching = any(not (_outside_words(left) or _outside_words(right)) for left, right in itertools.pairwise(tokens))
    if touching and not (pieces or spaced or whole):
        warn(
            f"none of the {len(tokens)} tokens says where a word begins (a leading 'Ġ', '▁', '##' or space), so each "
            "counts as a word; .by_span([(start, stop), ...]) sums over the tokens that you name.",
        )
    starts = [
        place
        for place, token in enumerate(tokens)
        if place == 0
        or token.startswith(SPACES)
        or (not token.startswith("##") if pieces or not spaced else False)
        or _outside_words(token)
        or _outside_words(tokens[place - 1])
    ]
    return list(zip(starts, [*starts[1:], len(tokens)], strict=True))


def _special(token: str) -> bool:
    """Whether a token is the tokenizer's own, such as `[CLS]`, `<s>` and `<|endoftext|>`."""
    return len(token) > 2 and (token[0], token[-1]) in {("[", "]"), ("<", ">")}


def _outside_words(token: str) -> bool:
    """Whether a token is outside of words: a special token, white space, or punctuation other than ' and -."""
    text = token.removeprefix("##").lstrip("Ġ▁ ")
    return (
        _special(token)
        or not text.strip("Ċĉ\n\t ")
        or all(unicodedata.category(letter)[0] in "PS" and letter not in "'’-" for letter in text)
    )


@functools.cache
def _bytes_of_letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes as."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}


def join(tokens: Sequence[str]) -> str:
    """The text of some tokens, without the markers of the tokenizer; white space at its ends is kept.

    Example:
        >>> join(["ĠZ", "Ã¼", "rich"]), join(["un", "##real"]), join(["▁so"])
        (' Zürich', 'unreal', ' so')
    """
    text = "".join(token.removeprefix("##") for token in tokens)
    if any(mark in text for mark in "ĠĊĉ") or not text.isascii():
        letters = _bytes_of_letters()
        if "▁" not in text and all(letter in letters for letter in text):
            try:
                return bytes(letters[letter] for letter in text).decode()
            except UnicodeDecodeError:
                pass
    return text.replace("▁", " ").replace("Ġ", " ")


def span_groups(tokens: Sequence[str] | None, spans: Sequence[Span], count: int) -> list[Group]:
    """Which tokens each span is: `(start, stop)`, or a part of the text that begins and ends with tokens.

    Raises:
        InputError: when there is no such span.
    """
    if isinstance(spans, str) or not isinstance(spans, Sequence) or not spans:
        raise InputError(f"spans must be a list of (start, stop) or of parts of the text, got {spans!r}.")
    return [
        _group_of_text(tokens, span, count) if isinstance(span, str) else _check_span(span, count) for span in spans
    ]


def _check_span(span: object, count: int) -> Group:
    pair = tuple(span) if isinstance(span, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(end, int) and not isinstance(end, bool) for end in pair):
        raise InputError(f"a span is (start, stop) or a part of the text, got {span!r}.")
    start, stop = pair
    if not 0 <= start < stop <= count:
        raise InputError(f"the span {span} holds no tokens of {count}: give 0 <= start < stop <= {count}.")
    return start, stop


def _group_of_text(tokens: Sequence[str] | None, text: str, count: int) -> Group:
    if tokens is None:
        raise InputError(f"the span {text!r} is a text, but the texts of the tokens are not known; give (start, stop).")
    wanted = text.split()
    found: list[Group] = []
    for start in range(count):
        for stop in range(start + 1, count + 1):
            words = _words(tokens, start, stop)
            if words == wanted:
                found = [group for group in found if group[1] != stop]  # without the white space before it
                found.append((start, stop))
                break
            if len(words) > len(wanted):
                break
    if len(found) != 1:
        shown = join(tokens).strip()
        raise InputError(
            f"the span {text!r} is {'not there' if not found else f'there {len(found)} times'} as whole tokens in "
            f"{shown[:200]!r}; give (start, stop) of its tokens."
        )
    return found[0]


def _words(tokens: Sequence[str], start: int, stop: int) -> list[str]:
    """The text of tokens as words: tokens without marks of spaces are separated."""
    part = tokens[start:stop]
    if any(token.startswith("##") for token in tokens) or not any(token.startswith(SPACES) for token in tokens):
        return "".join(f" {token}" if not token.startswith("##") else token[2:] for token in part).split()
    return join(part).split()


def sums(values: torch.Tensor, groups: Sequence[Sequence[Group]]) -> torch.Tensor:
    """The sums of `(batch, token)` over the groups of each sample, `(batch, group)`; 0 after the last of a sample.

    Raises:
        InputError: when the values are not one number per token.
    """
    if values.ndim != 2 or len(values) != len(groups):
        raise InputError(f"words need one number per token, (batch, token); the values are {describe(values)}.")
    total = values.new_zeros(len(values), max(len(row) for row in groups))
    for sample, row in enumerate(groups):
        for place, (start, stop) in enumerate(row):
            total[sample, place] = values[sample, start:stop].sum()
    return total
