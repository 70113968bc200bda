"""A prompt as a language model reads it, with the sources in it, and without some of them."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from layerlens.errors import InputError, OptionError, choose

from .text_parts import Range, sentences, words

Message: TypeAlias = dict[str, Any]
Span: TypeAlias = "str | tuple[int, int]"
"""A part of the prompt that is there once, or its first character and the one after the last."""
Place: TypeAlias = tuple[int, int, int]
"""A content by its number, and a range of its characters."""

SPLITS = {"sentence": sentences, "word": words}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The contents of a prompt, the text that they make, and the sources in them.

    Attributes:
        contents: the text, or the texts of the messages of a chat.
        render: makes the text that the model reads of the contents.
        chat: whether a chat template makes it, which has the special tokens in it.
        starts: where each content begins in the text, and how much of its beginning the template drops.
        sources: the sources, in reading order.
    """

    contents: tuple[str, ...]
    render: Callable[[Sequence[str]], str]
    chat: bool
    starts: tuple[tuple[int, int], ...]
    sources: tuple[Place, ...] = ()

    @property
    def text(self) -> str:
        """The prompt that the model reads."""
        return self.render(self.contents)

    @property
    def ranges(self) -> list[Range]:
        """Where the sources lie in the text."""
        offsets = [start - dropped for start, dropped in self.starts]
        return [(offsets[number] + start, offsets[number] + stop) for number, start, stop in self.sources]

    @property
    def texts(self) -> list[str]:
        """The texts of the sources."""
        return [self.contents[number][start:stop] for number, start, stop in self.sources]

    def kept(self, keep: Sequence[bool]) -> str:
        """Return the prompt with only some of its sources.

        A source goes with the white space that separates it from the one before; text between sources stays.
        """
        changed = list(self.contents)
        for number, content in enumerate(self.contents):
            own = [
                (place[1:], bool(kept)) for place, kept in zip(self.sources, keep, strict=True) if place[0] == number
            ]
            if all(kept for _, kept in own):
                continue
            made, end, follows = "", 0, False
            for (start, stop), kept in own:
                gap = content[end:start]
                if gap.strip() or not end:
                    made, follows = made + gap, False
                elif kept and follows:
                    made += gap
                if kept:
                    made, follows = made + content[start:stop], True
                end = stop
            changed[number] = made + content[end:]
        return self.render(changed)


def read_prompt(given: Any, context: str | None, tokenizer: Callable[..., Any]) -> Prompt:
    """Read a text, or the messages of a chat, and put a context before the last message.

    Raises:
        InputError: when it is neither, or the template cannot be followed.
    """
    if isinstance(given, str):
        if context is not None and context not in given:
            given = f"{context}\n\n{given}"
        return Prompt((given,), lambda contents: contents[0], False, ((0, 0),))
    messages = [dict(message) for message in given]
    template = getattr(tokenizer, "apply_chat_template", None)
    if template is None or not getattr(tokenizer, "chat_template", True):
        raise InputError(
            "the prompt is a chat, and the tokenizer has no chat template: give the prompt as one text, or set "
            "tokenizer.chat_template."
        )
    paths = _contents(messages)
    contents = [_content(messages, path) for path in paths]
    if not contents:
        raise InputError("no message of the chat has a content: [{'role': 'user', 'content': '...'}].")
    if context is not None and not any(context in content for content in contents):
        contents[-1] = f"{context}\n\n{contents[-1]}"
    last = messages[-1].get("role") == "assistant"
    how = {"continue_final_message": True} if last else {"add_generation_prompt": True}

    def render(texts: Sequence[str]) -> str:
        changed = copy.deepcopy(messages)
        for (message, part), text in zip(paths, texts, strict=True):
            if part is None:
                changed[message]["content"] = text
            else:
                changed[message]["content"][part]["text"] = text
        return str(template(changed, tokenize=False, **how))

    return Prompt(tuple(contents), render, True, _starts(contents, render))


def _contents(messages: list[Message]) -> list[tuple[int, int | None]]:
    """The texts in the messages: a message, or one of its parts.

    Raises:
        InputError: when a part is not text.
    """
    found: list[tuple[int, int | None]] = []
    for number, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, str):
            found += [(number, None)] if content.strip() else []
            continue
        for place, part in enumerate(content or []):
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                raise InputError(f"message {number} holds {str(part)[:60]}, and sources are texts alone.")
            found += [(number, place)] if part["text"].strip() else []
    return found


def _content(messages: list[Message], path: tuple[int, int | None]) -> str:
    content = messages[path[0]]["content"]
    return str(content if path[1] is None else content[path[1]]["text"])


def _starts(contents: Sequence[str], render: Callable[[Sequence[str]], str]) -> tuple[tuple[int, int], ...]:
    """Where a template puts the contents: marks instead of them show what it writes around them.

    Raises:
        InputError: when it writes them in another way.
    """
    around = re.split("\ue0a0\\d+\ue0a1", render([f"\ue0a0{number}\ue0a1" for number in range(len(contents))]))
    text, place, starts = render(contents), 0, []
    if len(around) == len(contents) + 1 and text.startswith(around[0]):
        place = len(around[0])
        for content, after in zip(contents, around[1:], strict=True):
            for shown in (content, content.rstrip(), content.lstrip(), content.strip()):
                if text.startswith(shown + after, place):
                    starts.append((place, 0 if content.startswith(shown) else len(content) - len(content.lstrip())))
                    place += len(shown) + len(after)
                    break
    if len(starts) < len(contents) or place != len(text):
        raise InputError(
            "the chat template changes the contents of the messages, so where they are is unknown. Give the prompt as "
            "one text: tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)."
        )
    return tuple(starts)


def with_sources(
    prompt: Prompt, sources: str | Sequence[Span], context: str | None, tokens: Callable[[Prompt], list[Range | None]]
) -> Prompt:
    """Return the prompt with its sources.

    Args:
        prompt: the prompt.
        sources: `"sentence"`, `"word"`, `"token"`, or spans.
        context: text that the sources lie in; None for all contents.
        tokens: finds the tokens in the text of a prompt; those of one character in the same range.

    Raises:
        InputError: when there is no source, or spans are not there, not clear, or overlap.
    """
    inside = [(number, 0, len(content)) for number, content in enumerate(prompt.contents)]
    if context is not None:
        inside = [_find(prompt.contents, context, "context")]
    if not isinstance(sources, str):
        found = sorted(_of_span(prompt, span) for span in sources)
        for one, after in itertools.pairwise(found):
            if one[0] == after[0] and one[2] > after[1]:
                texts = [prompt.contents[number][start:stop] for number, start, stop in (one, after)]
                raise InputError(f"the sources {texts[0]!r:.60} and {texts[1]!r:.60} overlap.")
    elif choose("sources", sources, (*SPLITS, "token")) == "token":
        found = []
        text = prompt.text
        everything = dict.fromkeys(one for one in tokens(prompt) if one and text[one[0] : one[1]].strip())
        for number, first, last in inside:
            offset = prompt.starts[number][0] - prompt.starts[number][1]
            places = [(start - offset, stop - offset) for start, stop in everything]
            found += [(number, start, stop) for start, stop in places if start >= first and stop <= last]
    else:
        split = SPLITS[sources]
        found = [
            (number, first + start, first + stop)
            for number, first, last in inside
            for start, stop in split(prompt.contents[number][first:last])
        ]
    if not found:
        raise InputError("the prompt holds no source: give a text, or sources= as parts of it.")
    return dataclasses.replace(prompt, sources=tuple(found))


def _of_span(prompt: Prompt, span: Any) -> Place:
    """The place of a span.

    Raises:
        InputError: when it is not there, there more than once, or across messages.
        OptionError: when it is not a span.
    """
    if isinstance(span, str):
        return _find(prompt.contents, span, "source")
    pair = tuple(span) if isinstance(span, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(end, int) and not isinstance(end, bool) for end in pair):
        raise OptionError(f"a source is a part of the prompt or (start, stop) of its characters, got {span!r}.")
    for number, (content, (start, dropped)) in enumerate(zip(prompt.contents, prompt.starts, strict=True)):
        first, last = pair[0] - start + dropped, pair[1] - start + dropped
        if dropped <= first < last <= len(content):
            return number, first, last
    raise InputError(
        f"the span {pair} is not inside of {'a message of ' if prompt.chat else ''}the prompt, whose text has "
        f"{len(prompt.text)} characters."
    )


def _find(contents: Sequence[str], wanted: str, what: str) -> Place:
    """The only place of a text in the contents.

    Raises:
        InputError: when it is there more than once, or not at all.
    """
    found = [
        (number, match.start(), match.end())
        for number, content in enumerate(contents)
        for match in re.finditer(re.escape(wanted), content)
        if wanted
    ]
    if len(found) != 1:
        how = f"there {len(found)} times" if found else "not there"
        raise InputError(f"the {what} {wanted!r:.80} is {how} in the prompt; give (start, stop) of its characters.")
    return found[0]
