"""From tokens to words and spans: the markers that tokenizers leave, and the sums over them."""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Sequence
from typing import Final, TypeAlias

import torch

from layerlens.errors import InputError, warn
from layerlens.inputs.token_texts import BYTE, SKIN_TONES, Group, character_groups as character_groups, is_special
from layerlens.model.trees import describe

Span: TypeAlias = "tuple[int, int] | str"

SPACES: Final = ("Ġ", "▁", "Ċ", "ĉ", " ", "\n", "\t")
"""What a token that begins a word begins with: byte-level tokenizers, SentencePiece, and plain text."""


def word_groups(tokens: Sequence[str], texts: Sequence[str] | None = None) -> list[Group]:
    """Which tokens make up each word.

    A word begins after white space, and at punctuation and special tokens; never inside of a character.

    Args:
        tokens: the tokenizer's names of the tokens.
        texts: what each of them reads, see `Attribution.texts`; None to read the markers in their names.

    Example:
        >>> word_groups(["The", "Ġcap", "ital", "Ġis", "."])
        [(0, 1), (1, 3), (3, 4), (4, 5)]
        >>> word_groups(["[CLS]", "un", "##real", "[SEP]"])
        [(0, 1), (1, 3), (3, 4)]
    """
    read, separate = texts, False
    if read is None:
        read, separate = marked_texts(tokens), _unmarked(tokens)
    starts, before = [0][: len(read)], ""
    for place, text in enumerate(read):
        if place and text and _begins_word(text, before, separate, last=place + 1 == len(read)):
            starts.append(place)
        before = text or before
    return list(zip(starts, [*starts[1:], len(tokens)], strict=True))


def _begins_word(text: str, before: str, separate: bool, last: bool) -> bool:
    """Whether a token begins a word; spaces alone are of the word after them, or of the last one."""
    if is_special(text) or is_special(before):
        return True
    if _is_space(before) or (last and _is_space(text)):
        return False
    spaced = text[0].isspace() or before[-1].isspace()
    return separate or spaced or _outside_words(text) or _outside_words(before)


def _is_space(text: str) -> bool:
    """Whether a text is white space within a line."""
    return not text.strip() and "\n" not in text


def _unmarked(tokens: Sequence[str]) -> bool:
    """Whether no name says where a word begins, so that each token counts as one; with a warning where they touch."""
    marked = any(token.startswith(("##", *SPACES)) for token in tokens) or _as_bytes(tokens) is not None
    whole = any(token.startswith("[") and is_special(token) for token in tokens)  # as "##" has them
    touching = any(not (_outside_words(left) or _outside_words(right)) for left, right in itertools.pairwise(tokens))
    if touching and not (marked or whole):
        warn(
            f"none of the {len(tokens)} tokens says where a word begins (a leading 'Ġ', '▁', '##' or space), so each "
            "counts as a word; .by_span([(start, stop), ...]) sums over the tokens that you name.",
        )
    return not marked


def marked_texts(tokens: Sequence[str]) -> list[str]:
    """What tokens read, by the markers in their names: the text, with the space before it, that each adds.

    Bytes that make up a character together have it at the first of them.

    Example:
        >>> marked_texts(["ĠZ", "Ã", "¼", "rich"]), marked_texts(["un", "##real", "words"]), marked_texts(["▁so"])
        ([' Z', 'ü', '', 'rich'], ['un', 'real', ' words'], [' so'])
    """
    coded = _as_bytes(tokens)
    if coded is not None:
        return _characters(tokens, coded)
    if any(token.startswith("##") for token in tokens):
        return [
            token.removeprefix("##") if not place or token.startswith("##") or _outside_words(token) else f" {token}"
            for place, token in enumerate(tokens)
        ]
    return [token.replace("▁", " ") for token in tokens]


def _as_bytes(tokens: Sequence[str]) -> list[bytes] | None:
    """The bytes of each token where its name spells them: with a letter for each, or as `<0xE5>`; else None."""
    if any(BYTE.fullmatch(token) for token in tokens):
        named = (BYTE.fullmatch(token) for token in tokens)
        return [
            bytes([int(found[1], 16)]) if found else token.replace("▁", " ").encode()
            for found, token in zip(named, tokens, strict=True)
        ]
    letters = _bytes_of_letters()
    text = "".join(tokens)
    if text.isascii() or not all(letter in letters for letter in text):
        return None
    coded = [bytes(letters[letter] for letter in token) for token in tokens]
    try:
        b"".join(coded).decode()
    except UnicodeDecodeError:
        return coded if any(mark in text for mark in "ĠĊĉ") else None  # a part of a text
    return coded


def _characters(tokens: Sequence[str], coded: Sequence[bytes]) -> list[str]:
    """The text of each token; one that is a part of a character is empty, and the first of them has it."""
    texts, start, held = [""] * len(coded), 0, b""
    for place, part in enumerate(coded):
        held += part
        text = held.decode(errors="replace")
        if not text.endswith("\ufffd") or place + 1 == len(coded) or len(held) > len(part) + 3:
            texts[start], start, held = text, place + 1, b""
    return texts


def _outside_words(token: str) -> bool:
    """Whether a token is outside of words: a special token, white space, or punctuation other than ' and -.

    Pictures such as emoji are words or parts of one.
    """
    text = token.removeprefix("##").lstrip("Ġ▁ ")
    return is_special(token) or not text.strip("Ċĉ\n\t ") or all(map(_punctuates, text))


def _punctuates(letter: str) -> bool:
    kind = unicodedata.category(letter)
    own = kind == "Co"  # letters that a tokenizer takes for its own marks
    return own or (kind[0] in "PS" and kind != "So" and letter not in "'’-" and letter not in SKIN_TONES)


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
    return "".join(marked_texts(tokens))


def span_groups(
    tokens: Sequence[str] | None, spans: Sequence[Span], count: int, texts: Sequence[str] | None = None
) -> list[Group]:
    """Which tokens each span is: `(start, stop)`, or a part of the text that begins and ends with tokens.

    Args:
        tokens: the tokenizer's names of the tokens; None if unknown.
        spans: the spans.
        count: number of tokens.
        texts: what each token reads; None to read the markers in their names.

    Raises:
        InputError: when there is no such span.
    """
    if isinstance(spans, str) or not isinstance(spans, Sequence) or not spans:
        raise InputError(f"spans must be a list of (start, stop) or of parts of the text, got {spans!r}.")
    return [
        _group_of_text(tokens, texts, span, count) if isinstance(span, str) else _check_span(span, count)
        for span in spans
    ]


def _check_span(span: object, count: int) -> Group:
    pair = tuple(span) if isinstance(span, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(end, int) and not isinstance(end, bool) for end in pair):
        raise InputError(f"a span is (start, stop) or a part of the text, got {span!r}.")
    start, stop = pair
    if not 0 <= start < stop <= count:
        raise InputError(f"the span {span} holds no tokens of {count}: give 0 <= start < stop <= {count}.")
    return start, stop


def _group_of_text(tokens: Sequence[str] | None, texts: Sequence[str] | None, text: str, count: int) -> Group:
    if texts is None and tokens is not None:
        alone = not any(token.startswith(("##", *SPACES)) for token in tokens) and _as_bytes(tokens) is None
        texts = [f" {token}" for token in tokens] if alone else marked_texts(tokens)
    if texts is None:
        raise InputError(f"the span {text!r} is a text, but the texts of the tokens are not known; give (start, stop).")
    wanted = text.split()
    found: list[Group] = []
    for start in range(count):
        for stop in range(start + 1, count + 1):
            words = "".join(texts[start:stop]).split()
            if words == wanted:
                end = next((end for end in range(stop, count) if texts[end]), count)  # with the rest of a character
                found = [group for group in found if group[1] != end]  # without the white space before it
                found.append((start, end))
                break
            if len(words) > len(wanted):
                break
    if len(found) != 1:
        shown = "".join(texts).strip()
        raise InputError(
            f"the span {text!r} is {'not there' if not found else f'there {len(found)} times'} as whole tokens in "
            f"{shown[:200]!r}; give (start, stop) of its tokens."
        )
    return found[0]


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
