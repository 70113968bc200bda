"""What each token reads: its part of the decoded text, never the letters that a tokenizer writes bytes as."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

Rows = list[list[str]]
"""A text for each token, by sample."""

Single = torch.Tensor | dict[str, torch.Tensor]
"""One tensor, or several by input name."""

Group = tuple[int, int]
"""Tokens from the first to before the second."""

BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""The name of a token that is one byte, in tokenizers that fall back to bytes."""

JOINER: Final = "\u200d"
"""What joins several pictures to one."""

SKIN_TONES: Final = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"

_INCOMPLETE: Final = "\ufffd"
"""What bytes that are a part of a character are decoded as."""


def token_names(tokenizer: Callable[..., Any], ids: torch.Tensor) -> Rows | None:
    """Return the tokenizer's own name of each token id `(batch, token)`, such as `Ġcapital`; None if it has none."""
    convert = getattr(tokenizer, "convert_ids_to_tokens", None)
    if convert is None or ids.ndim != 2 or bool((ids < 0).any()):
        return None
    return [[str(token) for token in convert(list(row))] for row in ids.tolist()]


def decoded_texts(tokenizer: Callable[..., Any], ids: torch.Tensor) -> Rows | None:
    """Return what each token id `(batch, token)` adds to the decoded text, with the space before it.

    Tokens that make up one character together have its text at the first of them, and empty texts after it. Special
    tokens have their names. None if the tokenizer cannot decode.
    """
    names = token_names(tokenizer, ids)
    decode = getattr(tokenizer, "decode", None)
    if names is None or decode is None:
        return None
    special = set(getattr(tokenizer, "all_special_ids", ()))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special |= {index for index, token in added.items() if getattr(token, "special", False)}

    def read(row: list[int]) -> str:
        try:
            return str(decode(row, clean_up_tokenization_spaces=False)) if row else ""
        except TypeError:
            return str(decode(row))

    return [_decoded(row, own, special, read) for row, own in zip(ids.tolist(), names, strict=True)]


def _decoded(row: list[int], names: Sequence[str], special: set[int], read: Callable[[list[int]], str]) -> list[str]:
    """The texts of one sample: each group of tokens is decoded after the one before it, which keeps its space."""
    texts = [""] * len(row)
    before = start = 0  # where the last complete group starts, and the one that is being read
    for place, index in enumerate(row):
        if index in special:
            texts[start] = read(row[start:place])
            texts[place] = names[place]
            before = start = place + 1
            continue
        context, text = read(row[before:start]), read(row[before : place + 1])
        added = text.removeprefix(context) if text.startswith(context) else ""
        added = added or read(row[start : place + 1])
        if place + 1 < len(row) and (added.endswith(_INCOMPLETE) or (not added and place < start + 3)):
            continue  # some decoders leave out what is not complete
        texts[start] = added
        before, start = start, place + 1
    return texts


def texts_by_offsets(text: str, names: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[str]:
    """Return the part of a text that each token is, with the space before it, as in `decoded_texts`.

    Args:
        text: the text.
        names: the tokenizer's names of its tokens.
        offsets: first letter of each token and the one after its last; equal for tokens that are not in the text.

    Example:
        >>> texts_by_offsets("a b北", ["[CLS]", "a", "b", "x", "y"], [(0, 0), (0, 1), (2, 3), (3, 4), (3, 4)])
        ['[CLS]', 'a', ' b', '北', '']
    """
    texts: list[str] = []
    end = last = 0  # the first letter that no token has had, and the token that had the one before it
    for place, (name, (first, stop)) in enumerate(zip(names, offsets, strict=True)):
        if first == stop:
            texts.append(name)
        elif first < end:  # a part of the character before
            texts.append("")
            texts[last] += text[end:stop]
            end = max(end, stop)
        else:
            left_out = text[end:first].split(maxsplit=1)[0] if text[end:first].strip() else ""
            if end and text[end : end + 1].strip():  # such as an accent that the tokenizer drops
                texts[last] += left_out
                end += len(left_out)
            texts.append(text[end:stop])
            end, last = stop, place
    return texts


def encoded_texts(tokenizer: Callable[..., Any], encoding: Any, texts: Sequence[str]) -> Rows | None:
    """Return what each token of some encoded texts reads, by the offsets of a fast tokenizer; None for another one."""
    encodings = getattr(encoding, "encodings", None)
    if not encodings or len(encodings) != len(texts) or not isinstance(ids := encoding.get("input_ids"), torch.Tensor):
        return None
    names = token_names(tokenizer, ids)
    if names is None or any(len(one.offsets) != ids.shape[1] for one in encodings):
        return None
    return [texts_by_offsets(text, own, one.offsets) for text, own, one in zip(texts, names, encodings, strict=True)]


def token_ids(values: Single, inputs: Single | None) -> Single | None:
    """Return the inputs that are token ids with one value for each, `(batch, token)`; None if there are none.

    Args:
        values: the values of each input.
        inputs: the inputs, in the same form.
    """
    if isinstance(values, dict):
        given = inputs if isinstance(inputs, dict) else {}
        found = {name: token_ids(one, given.get(name)) for name, one in values.items()}
        return {name: ids for name, ids in found.items() if isinstance(ids, torch.Tensor)} or None
    if not isinstance(inputs, torch.Tensor) or inputs.ndim != 2 or inputs.shape != values.shape:
        return None
    return inputs if inputs.dtype in (torch.int64, torch.int32) else None


def known_tokens(
    tokenizer: Callable[..., Any], ids: Single, texts: Rows | None = None
) -> tuple[Rows | dict[str, Rows] | None, Rows | dict[str, Rows] | None]:
    """Return the names of token ids and what they read, in the form of the ids; None where they are unknown.

    Args:
        tokenizer: a tokenizer as in `transformers`.
        ids: `(batch, token)`, or several by input name.
        texts: what the tokens of `input_ids` read, where it is known.
    """
    if isinstance(ids, torch.Tensor):
        names = token_names(tokenizer, ids)
        same = names is not None and texts is not None and list(map(len, names)) == list(map(len, texts))
        return names, texts if same else decoded_texts(tokenizer, ids)
    found = {name: known_tokens(tokenizer, one, texts if name == "input_ids" else None) for name, one in ids.items()}
    named = {name: names for name, (names, _) in found.items() if isinstance(names, list)}
    read = {name: own for name, (_, own) in found.items() if isinstance(own, list)}
    return named or None, read or None


def is_special(token: str) -> bool:
    """Return whether a token is the tokenizer's own, such as `[CLS]`, `<s>` and `<|endoftext|>`."""
    return len(token) > 2 and (token[0], token[-1]) in {("[", "]"), ("<", ">")} and not BYTE.fullmatch(token)


def character_groups(texts: Sequence[str]) -> list[Group]:
    """Return which tokens make up each character: bytes, and marks that are written onto the letter before them.

    Example:
        >>> character_groups(["a", " 北", "", "", "t", "e", "\u0301"])
        [(0, 1), (1, 4), (4, 5), (5, 7)]
    """
    starts = [place for place, text in enumerate(texts) if not place or not _is_part(text, texts[place - 1])]
    return list(zip(starts, [*starts[1:], len(texts)], strict=True))


def _is_part(text: str, before: str) -> bool:
    """Whether a token continues the character before it."""
    first = text[:1]
    joined = before.endswith(JOINER) or first == JOINER or first in SKIN_TONES
    return not first or (
        bool(before.strip()) and not is_special(before) and (joined or unicodedata.category(first)[0] == "M")
    )


def labels(texts: Sequence[str]) -> list[str]:
    """Return a name for each token where each is shown by itself: parts of a character have its text and a number.

    Example:
        >>> labels([" a", "北", "", ""])
        [' a', '北 1/3', '北 2/3', '北 3/3']
    """
    named = []
    for start, stop in character_groups(texts):
        text, count = "".join(texts[start:stop]), stop - start
        named += [text] if count == 1 else [f"{text} {place}/{count}" for place in range(1, count + 1)]
    return named
